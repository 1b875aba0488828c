"""Derivatives, eigenvalues and traces of the loss, and the curvature at which an optimizer becomes unstable."""
