"""Derivatives, eigenvalues and traces, and the curvature that an optimizer can take."""
