"""Gradients: their size, and how it changes on the way back."""
