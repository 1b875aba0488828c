"""The initialisation of a run: captured once, on CPU, kept in a file beside the run, or read from the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_probes.probing.run.files import places, replacing

StateDict: TypeAlias = dict[str, Tensor]
InitStateSource: TypeAlias = str | PathLike[str] | Mapping[str, Any]


def check_initialised(module: nn.Module) -> None:
    """Every parameter and buffer has a shape.

    Raises:
        ValueError: If a lazy module has not seen its first batch yet.
    """
    for path, child in module.named_modules():
        for name, tensor in (*child._parameters.items(), *child._buffers.items()):
            if is_lazy(tensor):
                name = f"{path}.{name}" if path else name
                raise ValueError(f"{name!r} is not initialised: run one batch through the lazy module before `fit`")


def capture_state(module: nn.Module) -> StateDict:
    """Parameters and buffers of a module, copied to CPU in their own dtype.

    Raises:
        ValueError: As `check_initialised`.

    Example:
        >>> sorted(capture_state(nn.Linear(2, 1)))
        ['bias', 'weight']
    """
    check_initialised(module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def keep_state(state: StateDict, directory: Path) -> dict[str, str]:
    """Write a state to a file named by its content, unless it is there.

    It is not mapped from that file, though that would spare memory: a file that is cut off, or out of reach for a
    moment on a network, would end the process.

    Returns:
        What a checkpoint holds, so that `kept_state` finds the file.

    Raises:
        OSError: If it can't be written.
    """
    digest = _digest(state)
    path = directory / f"init-{digest[:16]}.pt"
    if not path.exists():
        try:
            with replacing(path) as file:  # straight, without a second copy in memory
                torch.save(state, file)
        except RuntimeError as error:  # which the writer of the archive makes of a full disk
            raise OSError(str(error).partition("\n")[0]) from error
    return {"path": str(path), "sha256": digest}


def kept_state(kept: Mapping[str, str], beside: Path | None = None) -> StateDict | None:
    """A state that `keep_state` wrote.

    Args:
        kept: What it returned.
        beside: The checkpoint that held it, which may have moved along with the file.

    Returns:
        The state; None if there is no such file, or its content is another.
    """
    for path in places(kept["path"], beside):
        try:
            state: StateDict = torch.load(path, map_location="cpu", weights_only=True)
            if _digest(state) == kept["sha256"]:
                return state
        except Exception:  # missing, cut off or foreign, of which torch.load says all kinds of things
            continue
    return None


def load_state(source: InitStateSource, module: nn.Module, argument: str = "init_state") -> StateDict:
    """Read a state from a Lightning checkpoint, a saved state dict, or a state dict in memory.

    Args:
        source: Path of a file that `torch.load(weights_only=True)` reads, or a mapping of names to tensors; either may
            be a Lightning checkpoint with a `state_dict` inside. Whether a submodule was compiled makes no difference.
        module: The module the state belongs to.
        argument: The argument that it was given as, for the messages.

    Returns:
        Copies on CPU of the tensors of `source`, under the names that the parameters and buffers of `module` have.

    Raises:
        OSError: If there is no such file, or none to be opened.
        ValueError: If it can't be read, or a parameter is missing or has another shape; the message names the argument.
            As `check_initialised` too.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> sorted(load_state({"state_dict": module.state_dict()}, module))
        ['bias', 'weight']
    """
    check_initialised(module)
    content = read_file(source, argument) if isinstance(source, (str, PathLike)) else source
    return state_in(content, module, argument)


def state_in(content: Any, module: nn.Module, argument: str = "init_state") -> StateDict:
    """As `load_state`, from what a file held.

    Raises:
        ValueError: If it holds no state of this module; the message names the argument.
    """
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{argument} holds an object of type {type(content).__name__}, not a checkpoint or state dict: pass a "
            f"Lightning checkpoint or a saved state dict as {argument}="
        )
    found = {_bare(str(name)): value for name, value in content.items()}
    for name, parameter in module.named_parameters():
        value = found.get(_bare(name))
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
            raise ValueError(
                f"{argument} does not belong to this module: parameter {name!r} of shape {tuple(parameter.shape)} is "
                f"{what} there; pass a checkpoint of the same model as {argument}="
            )
    names = [*dict(module.named_parameters()), *dict(module.named_buffers())]
    return {name: found[_bare(name)].detach().to("cpu", copy=True) for name in names if _bare(name) in found}


def read_file(path: str | PathLike[str], argument: str = "init_state") -> Any:
    """What `torch.save` wrote to a file, if loading it runs no code.

    Args:
        path: The file.
        argument: The argument that it was given as, for the messages.

    Raises:
        OSError: If there is no such file, or none to be opened.
        ValueError: If it can't be read, or may run code; the message names the argument.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:  # says which file, and why it can't be opened
        raise
    except UnpicklingError as error:
        if "Unsupported operand" in str(error):  # what is no pickle at all
            raise _unreadable(path, error, argument) from error
        raise ValueError(
            f"{argument}={str(path)!r} holds more than tensors and plain values, which may run code when it is loaded: "
            f"load it yourself if you trust it, and pass its state dict as {argument}="
        ) from error
    except Exception as error:  # of what is empty, cut off or foreign torch.load says all kinds of things
        raise _unreadable(path, error, argument) from error


def _unreadable(path: str | PathLike[str], error: Exception, argument: str) -> ValueError:
    found = ": ".join(filter(None, [type(error).__name__, str(error).partition(". ")[0]]))
    return ValueError(
        f"{argument}={str(path)!r} can't be read as a file of torch.save ({found}): pass a Lightning checkpoint or a "
        f"saved state dict, undamaged, as {argument}="
    )


def _bare(name: str) -> str:
    """A name without what `torch.compile` puts in."""
    return name.replace("_orig_mod.", "")


def _digest(state: StateDict) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()
