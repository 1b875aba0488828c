"""The models, batches and datasets that every callback is tried on."""

from lightning_probes.testing.zoo.cases import CASES, EVERY_CASE, Case, Fit

__all__ = ["CASES", "EVERY_CASE", "Case", "Fit"]
