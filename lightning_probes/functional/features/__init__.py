"""Comparing layers by their outputs."""
