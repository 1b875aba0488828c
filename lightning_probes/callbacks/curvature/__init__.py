"""Probes of the curvature of the loss."""
