"""Norms of per-sample gradients from one forward and one backward pass."""
