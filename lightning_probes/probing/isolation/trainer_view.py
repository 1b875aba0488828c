"""What a twin sees of the Trainer and its parts: everything to read, nothing to change."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class TrainerView:
    """A stand-in for a Trainer, or for a part of one, whose attributes can be read; what is set stays on the view.

    Args:
        viewed: The Trainer or the part.
        read: Weak reference to what reads an attribute of it for the twin: a plain value as it is, a view of a part, a
            double of anything else. None shows what is there.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False)
        >>> view = TrainerView(trainer)
        >>> view.should_stop = True
        >>> isinstance(view, Trainer), view.should_stop, trainer.should_stop
        (True, True, False)
    """

    def __init__(self, viewed: Any, read: weakref.ref[Callable[[Any, str], Any]] | None = None) -> None:
        vars(self).update(_viewed=viewed, _read=read)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # user code may ask isinstance(self.trainer, Trainer)
        return type(vars(self)["_viewed"])

    def __getattr__(self, name: str) -> Any:
        viewed, reference = vars(self)["_viewed"], vars(self)["_read"]
        if reference is None:
            return getattr(viewed, name)
        read = reference()
        assert read is not None  # or what is there would be shown to whoever keeps the view of a twin that has gone
        return read(viewed, name)

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        """Do nothing: a replayed step writes no files, and removes none."""

    remove_checkpoint = save_checkpoint
