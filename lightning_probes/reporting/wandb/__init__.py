"""Weights & Biases: what runs are sent, and the workspaces that show it."""
