"""Probes of the loss on paths in parameter space."""
