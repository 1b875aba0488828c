"""What a twin sees of the Trainer: everything to read, nothing to change."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

_COPIED = frozenset({"callback_metrics", "logged_metrics", "progress_bar_metrics"})


class TrainerView:
    """A stand-in for a Trainer whose attributes can be read; what is set stays on the view, what is logged is dropped.

    Args:
        trainer: The Trainer to look at.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False)
        >>> view = TrainerView(trainer)
        >>> view.should_stop = True
        >>> isinstance(view, Trainer), view.should_stop, trainer.should_stop
        (True, True, False)
    """

    def __init__(self, trainer: Any) -> None:
        self.__dict__["_viewed"] = trainer
        self.__dict__["loggers"] = [DummyLogger() for _ in trainer.loggers]
        self.__dict__["logger"] = DummyLogger() if trainer.loggers else None

    def attach(self, module: nn.Module) -> None:
        """Let the view's model be the twin, so that hooks which reach for the model find the double."""
        self.__dict__.update(model=module, lightning_module=module)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_viewed"], name)
        return dict(value) if name in _COPIED else value

    @property
    def __class__(self) -> Any:  # user code may ask isinstance(self.trainer, Trainer)
        return type(self.__dict__["_viewed"])

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        """Do nothing: a replayed step writes no files."""
