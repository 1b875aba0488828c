"""What a twin sees of the Trainer: everything to read, nothing to change."""

from __future__ import annotations

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
        double: Makes the twin's own of optimizers, schedulers, metrics and the data module.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False)
        >>> view = TrainerView(trainer)
        >>> view.should_stop = True
        >>> isinstance(view, Trainer), view.should_stop, trainer.should_stop
        (True, True, False)
    """

    def __init__(self, trainer: Any, double: Callable[[Any], Any] = lambda value: value) -> None:
        vars(self).update(_viewed=trainer, _double=double)

    def attach(self, module: nn.Module) -> None:
        """Let the view's model be the twin, so that hooks which reach for the model find the double."""
        trainer, double = vars(self)["_viewed"], vars(self)["_double"]
        loggers = [Muted(logger) for logger in trainer.loggers]
        strategy = TrainerView(trainer.strategy, double)
        vars(strategy).update(model=module, lightning_module=module)
        vars(self).update(
            model=module, lightning_module=module, strategy=strategy, loggers=loggers, logger=next(iter(loggers), None)
        )

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # user code may ask isinstance(self.trainer, Trainer)
        return type(vars(self)["_viewed"])

    def __getattr__(self, name: str) -> Any:
        value = getattr(vars(self)["_viewed"], name)
        return vars(self)["_double"](value) if name in _DOUBLED else value

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        """Do nothing: a replayed step writes no files."""
