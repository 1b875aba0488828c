"""Probe data: choosing samples, reading them without touching the user's loaders, and splitting them into batches."""
