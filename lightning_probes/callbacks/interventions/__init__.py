"""Callbacks that change training on purpose, or train a second network beside it."""
