"""The state of the process, loggers and parameters during a measurement; restored afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from lightning_probes.functional.fast_path import without_fast_path
from lightning_probes.probing.isolation.muting import muted
from lightning_probes.probing.isolation.seeding import isolated_rng
from lightning_probes.probing.isolation.writes import unwritten


@contextmanager
def measuring() -> Iterator[None]:
    """The process-wide state of a measurement; restored on exit, also after an error.

    Generators are isolated, and gradients are on (also inside validation). Compiled modules run eagerly, because
    compiled graphs do not support second derivatives and hooks. Anomaly detection is off, because a probe evaluates
    perturbed parameters and reports non-finite values itself.
    """
    # Set no stance if no code is compiled in this process: importing the compiler is slow.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with (
        isolated_rng(), torch.inference_mode(False), torch.enable_grad(), eager, without_fast_path(),
        torch.autograd.set_detect_anomaly(False, torch.is_anomaly_check_nan_enabled()),
    ):  # fmt: skip
        yield


@contextmanager
def replaying(module: nn.Module, keep: bool) -> Iterator[None]:
    """The context for running the user's code: it logs nothing, and writes to the parameters are detected.

    Args:
        module: The user's module.
        keep: Restore parameters that were written to, from a copy.

    Raises:
        WrittenError: If a parameter has changed.
    """
    with muted(), unwritten(module, keep):
        yield
