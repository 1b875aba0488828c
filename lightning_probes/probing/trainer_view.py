"""What a twin sees of the Trainer: everything to read, nothing to change."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_probes.probing.stand_ins import Muted

# What a training step may well write to: the twin gets its own.
_DOUBLED = frozenset(
    {
        "optimizers", "_lightning_optimizers", "lr_scheduler_configs", "datamodule",
        "callback_metrics", "logged_metrics", "progress_bar_metrics",
    }
)  # fmt: skip


class TrainerView:
    """A stand-in for a Trainer whose attributes can be read; what is set stays on the view, what is logged is dropped.

    Args:
        trainer: The Trainer to look at, or a part of one.
        double: Weak reference to what makes the twin's own of optimizers, schedulers, metrics and the data module; None
            shows the Trainer's.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False)
        >>> view = TrainerView(trainer)
        >>> view.should_stop = True
        >>> isinstance(view, Trainer), view.should_stop, trainer.should_stop
        (True, True, False)
    """

    def __init__(self, trainer: Any, double: weakref.WeakMethod[Callable[[Any], Any]] | None = None) -> None:
        vars(self).update(_viewed=trainer, _double=double, _model=lambda: None)

    def attach(self, module: nn.Module) -> None:
        """Let the view's model be the twin, so that hooks which reach for the model find the double."""
        loggers = [Muted(logger) for logger in vars(self)["_viewed"].loggers]
        strategy = TrainerView(vars(self)["_viewed"].strategy, vars(self)["_double"])
        vars(strategy).update(_model=weakref.ref(module))
        vars(self).update(
            _model=weakref.ref(module), strategy=strategy, loggers=loggers, logger=next(iter(loggers), None)
        )

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # user code may ask isinstance(self.trainer, Trainer)
        return type(vars(self)["_viewed"])

    def __getattr__(self, name: str) -> Any:
        value = getattr(vars(self)["_viewed"], name)
        if name in ("model", "lightning_module"):
            return vars(self)["_model"]() or value
        double = vars(self)["_double"] if name in _DOUBLED else None
        return value if double is None else double()(value)

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        """Do nothing: a replayed step writes no files."""
