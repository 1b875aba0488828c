"""The models, batches and datasets that every probe is tried on."""

from tests.zoo.cases import CASES, Case, Fit

__all__ = ["CASES", "Case", "Fit"]
