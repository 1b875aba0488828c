"""The twin's read-only view of the Trainer and its parts."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class TrainerView:
    """A stand-in for a Trainer, or a part of one. Attributes can be read; new values are set on the view only.

    Args:
        viewed: The Trainer or the part.
        read: Weak reference to the function that reads an attribute for the twin. It returns plain values unchanged, a
            view for a part of the Trainer, and a copy of anything else. With None attributes are returned unchanged.

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
        assert read is not None  # the twin is gone: its view must not return the originals
        return read(viewed, name)

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        """Do nothing: a replayed step neither writes nor removes files."""

    remove_checkpoint = save_checkpoint
