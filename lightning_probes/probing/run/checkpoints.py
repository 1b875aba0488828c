"""Notice every checkpoint that a Trainer writes, by whatever call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Listener = Callable[[], None]


def watch_checkpoints(trainer: Any, listener: Listener) -> Callable[[], None]:
    """Call `listener` after each `trainer.save_checkpoint` until the returned function is called.

    No hook of Lightning sees every save: weights-only and manual saves call none. But all saves call this method.

    Args:
        trainer: The Trainer; its method is wrapped on the instance.
        listener: Called without arguments after a checkpoint is written.

    Returns:
        A function that stops watching. When the last watcher has stopped, the Trainer has its own method again.

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
    listeners, unwrap = getattr(trainer.save_checkpoint, "_probe_watch", None) or _wrap(trainer)
    listeners.append(listener)

    def stop() -> None:
        if listener in listeners:
            listeners.remove(listener)
            if not listeners:
                unwrap()

    return stop


def _wrap(trainer: Any) -> tuple[list[Listener], Callable[[], None]]:
    save, before = trainer.save_checkpoint, vars(trainer).get("save_checkpoint")
    listeners: list[Listener] = []

    @functools.wraps(save)
    def save_and_tell(*args: Any, **kwargs: Any) -> Any:
        result = save(*args, **kwargs)
        for listener in tuple(listeners):
            listener()
        return result

    def unwrap() -> None:
        if vars(trainer).get("save_checkpoint") is not save_and_tell:
            return  # other code has wrapped this wrapper, which does nothing without listeners
        del trainer.save_checkpoint
        if before is not None:
            trainer.save_checkpoint = before

    save_and_tell._probe_watch = (listeners, unwrap)  # type: ignore[attr-defined]
    trainer.save_checkpoint = save_and_tell
    return listeners, unwrap
