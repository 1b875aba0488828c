"""Whether the user's own code exchanges tensors between the processes, as a contrastive loss over all of them does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_probes.probing.isolation.writes import is_written
from lightning_probes.probing.view import ModelView


class _ExchangeBegins(BaseException):  # which no user code catches by mistake
    """An exchange was about to begin."""


class _BreaksOff(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises at the first operation that would exchange something."""

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:  # functional ones are of another namespace, whose name has it too
            raise _ExchangeBegins
        return func(*args, **(kwargs or {}))


def exchanges(view: ModelView) -> bool:
    """Whether the loss, its gradient or the logits of a micro-batch take an exchange between processes.

    Nothing is exchanged: the pass is broken off before. What else ends a pass is for the probe's own check to say.
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
