"""Quiet: what the process, the loggers and the parameters are under while a probe looks, restored afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from lightning_probes.probing.isolation.muting import muted
from lightning_probes.probing.isolation.seeding import isolated_rng
from lightning_probes.probing.isolation.writes import unwritten


@contextmanager
def measuring() -> Iterator[None]:
    """The process-wide state a measurement runs under, all of it restored on exit, also after an error.

    Generators isolated, gradients on (also inside validation), compiled modules run as written: their graphs lack
    what a second derivative needs, and hooks would not fire. Anomaly detection off: a probe tries things at moved
    parameters, and says by itself what is not finite.
    """
    # Without compiled code in the process there is no stance to set, and the compiler is slow to import.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with (
        isolated_rng(), torch.inference_mode(False), torch.enable_grad(), eager, _without_fast_path(),
        torch.autograd.set_detect_anomaly(False, torch.is_anomaly_check_nan_enabled()),
    ):  # fmt: skip
        yield


@contextmanager
def replaying(module: nn.Module, keep: bool) -> Iterator[None]:
    """What the user's code runs under: it logs nothing, and writes to the parameters do not pass unnoticed.

    Args:
        module: The user's module.
        keep: Put back what was written, from a copy of the parameters.

    Raises:
        WrittenError: If a parameter has changed.
    """
    with muted(), unwritten(module, keep):
        yield


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """PyTorch's transformer layers compute another function on padding where no gradients are asked for."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
