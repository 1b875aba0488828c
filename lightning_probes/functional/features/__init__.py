"""Comparing layers by what they return."""
