"""Panels: each is data that describes a picture, and gives its figure and its table."""
