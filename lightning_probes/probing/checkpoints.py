"""Noticing every checkpoint that a Trainer writes, whoever asked for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Listener = Callable[[], None]


def watch_checkpoints(trainer: Any, listener: Listener) -> Callable[[], None]:
    """Call `listener` after each `trainer.save_checkpoint` until the returned function is called.

    No hook of Lightning sees every save (weights-only and manual ones pass all of them by), but all go through this method.

    Args:
        trainer: The Trainer; its method is wrapped on the instance.
        listener: Called without arguments after a checkpoint is written.

    Returns:
        A function that stops watching; the Trainer is as it was when the last watcher has stopped.

    Example:
        >>> class Saver:
        ...     def save_checkpoint(self, path): print("saving", path)
        >>> saver = Saver()
        >>> stop = watch_checkpoints(saver, lambda: print("saved"))
        >>> saver.save_checkpoint("a.ckpt"); stop(); saver.save_checkpoint("b.ckpt")
        saving a.ckpt
        saved
        saving b.ckpt
    """
    listeners: list[Listener] | None = getattr(trainer.save_checkpoint, "_probe_listeners", None)
    if listeners is None:
        listeners = _wrap(trainer)
    listeners.append(listener)

    def stop() -> None:
        if listener in listeners:
            listeners.remove(listener)
            if not listeners:
                _unwrap(trainer)

    return stop


def _wrap(trainer: Any) -> list[Listener]:
    save = trainer.save_checkpoint
    listeners: list[Listener] = []

    @functools.wraps(save)
    def save_and_tell(*args: Any, **kwargs: Any) -> Any:
        result = save(*args, **kwargs)
        for listener in listeners:
            listener()
        return result

    save_and_tell._probe_listeners = listeners  # type: ignore[attr-defined]
    save_and_tell._wrapped_on_instance = "save_checkpoint" in vars(trainer)  # type: ignore[attr-defined]
    trainer.save_checkpoint = save_and_tell
    return listeners


def _unwrap(trainer: Any) -> None:
    wrapper = vars(trainer).pop("save_checkpoint")
    if wrapper._wrapped_on_instance:
        trainer.save_checkpoint = wrapper.__wrapped__
