"""Weights & Biases: logging to runs, and workspaces that show the logged results."""
