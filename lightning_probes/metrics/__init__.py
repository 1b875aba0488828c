"""Accumulators that sum over micro-batches and processes."""

from lightning_probes.metrics.mean_estimate import Estimate, MeanEstimate
from lightning_probes.metrics.minibatch_cka import CKA, MinibatchCKA

__all__ = ["CKA", "Estimate", "MeanEstimate", "MinibatchCKA"]
