"""Probe data: which samples, read without touching the user's loaders, in micro-batches over processes."""
