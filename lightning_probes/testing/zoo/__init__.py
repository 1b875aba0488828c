"""The models, batches and datasets on which every callback is tested."""

from lightning_probes.testing.zoo.cases import CASES, EVERY_CASE, Case, Fit

__all__ = ["CASES", "EVERY_CASE", "Case", "Fit"]
