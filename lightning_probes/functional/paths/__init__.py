"""Paths between points in parameter space, and the loss along them."""
