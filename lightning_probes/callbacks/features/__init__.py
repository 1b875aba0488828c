"""Probes of the features that layers return."""
