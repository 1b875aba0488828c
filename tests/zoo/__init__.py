"""The zoo, under its old name."""

from lightning_probes.testing.zoo import CASES, Case, Fit

__all__ = ["CASES", "Case", "Fit"]
