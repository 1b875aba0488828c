"""Whether the user's code exchanges tensors between processes, such as a contrastive loss over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_probes.probing.isolation.writes import is_written
from lightning_probes.probing.view import ModelView


class _ExchangeBegins(BaseException):  # not an Exception, so that user code does not catch it by mistake
    """An exchange is about to begin."""


class _BreaksOff(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises at the first operation that would exchange tensors."""

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:  # "_c10d_functional" too
            raise _ExchangeBegins
        return func(*args, **(kwargs or {}))


def exchanges(view: ModelView) -> bool:
    """Whether the loss, its gradient or the logits of a micro-batch need an exchange between processes.

    Nothing is exchanged: the pass stops before. Other errors of the pass are ignored here; the probe's own checks
    report them.
    """
    return any(_exchanges(view, split) for split in view.data)


def _exchanges(view: ModelView, split: str) -> bool:
    batch = view.probe_set(split).first
    params = {name: p.clone().requires_grad_() for name, p in view.params.items()}

    def gradient() -> None:
        loss = view.loss(params, batch)
        torch.autograd.grad(loss, [*params.values()], allow_unused=True)

    for look in (gradient, lambda: view.logits(batch)) if view.has_loss() else (lambda: view.logits(batch),):
        try:
            with _BreaksOff():  # type: ignore[no-untyped-call]
                look()
        except _ExchangeBegins:
            return True
        except Exception as error:
            if is_written(error):
                raise
    return False
