"""Callbacks that follow signals and gradients through the layers."""
