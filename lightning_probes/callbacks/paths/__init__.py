"""Probes of the loss between points in parameter space."""
