"""The initialisation of a run: copied to the CPU once and kept in a file beside the run, or read from a user's file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_probes.probing.isolation.initialised import check_initialised
from lightning_probes.probing.run.files import places, replacing

StateDict: TypeAlias = dict[str, Tensor]
InitStateSource: TypeAlias = str | PathLike[str] | Mapping[str, Any] | nn.Module


def capture_state(module: nn.Module) -> StateDict:
    """Parameters and buffers of a module, copied to the CPU in their own dtype.

    Raises:
        ValueError: If a lazy module has not seen its first batch yet.

    Example:
        >>> sorted(capture_state(nn.Linear(2, 1)))
        ['bias', 'weight']
    """
    check_initialised(module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def keep_state(state: StateDict, directory: Path) -> dict[str, str]:
    """Write a state to a file named by a hash of its content, unless that file exists.

    Mapping the file would save memory. But if a mapped file is truncated, or a network drive fails for a moment, the
    process dies.

    Returns:
        The path and the hash of the file. A checkpoint holds them, so that `kept_state` finds the file.

    Raises:
        OSError: If the file can't be written.
    """
    digest = _digest(state)
    path = directory / f"init-{digest[:16]}.pt"
    if not path.exists():
        try:
            with replacing(path) as file:  # written directly, without a second copy in memory
                torch.save(state, file)
        except RuntimeError as error:  # raised by torch.save when the disk is full
            raise OSError(str(error).partition("\n")[0]) from error
    return {"path": str(path), "sha256": digest}


def kept_state(kept: Mapping[str, str], beside: Path | None = None) -> StateDict | None:
    """Read a state that `keep_state` wrote.

    Args:
        kept: The return value of `keep_state`.
        beside: The checkpoint that held this value. It may have moved along with the file.

    Returns:
        The state; None if the file is missing or has another content.
    """
    for path in places(kept["path"], beside):
        try:
            state: StateDict = torch.load(path, map_location="cpu", weights_only=True)
            if _digest(state) == kept["sha256"]:
                return state
        except Exception:  # torch.load raises many kinds of errors for missing, truncated and foreign files
            continue
    return None


def load_state(
    source: InitStateSource, module: nn.Module, argument: str = "init_state", whole: bool = False
) -> StateDict:
    """Read a state of a module from a Lightning checkpoint, a saved state dict, a state dict in memory, or a module.

    Args:
        source: The path of a file that `torch.load(weights_only=True)` reads, or a mapping of names to tensors. Both
            may be a Lightning checkpoint with a `state_dict` inside. Or a module. Compiled and plain submodules are
            equivalent.
        module: The module to which the state belongs.
        argument: The argument that the source was passed as, for error messages.
        whole: Raise an error if the state has tensors that `module` does not have, because it then belongs to another
            function.

    Returns:
        Copies of the tensors of `source` on the CPU, under the names of the parameters and buffers of `module`.

    Raises:
        OSError: If the file does not exist or can't be opened.
        ValueError: If the file can't be read, or the state belongs to another module; the message names the argument
            and lists what differs. Also if a lazy module has not seen its first batch yet.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> sorted(load_state({"state_dict": module.state_dict()}, module))
        ['bias', 'weight']
    """
    check_initialised(module)
    if isinstance(source, nn.Module):
        check_initialised(source)
        return state_in(_everything(source), module, argument, whole)
    content = read_file(source, argument) if isinstance(source, (str, PathLike)) else source
    return state_in(content, module, argument, whole)


def state_in(content: Any, module: nn.Module, argument: str = "init_state", whole: bool = False) -> StateDict:
    """As `load_state`, but from the content of a file.

    Raises:
        ValueError: If the content has no state of this module; the message names the argument.
    """
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{argument} holds an object of type {type(content).__name__}, not a checkpoint or state dict: pass a "
            f"Lightning checkpoint, a saved state dict or a module as {argument}="
        )
    found = {_bare(str(name)): value for name, value in content.items()}
    if differences := [*_differences(found, module), *(_further(found, module) if whole else ())]:
        raise ValueError(
            f"{argument} does not belong to this module: {_listed(differences)}; pass a checkpoint of the same model "
            f"as {argument}="
        )
    names = [*dict(module.named_parameters()), *dict(module.named_buffers())]
    return {name: found[_bare(name)].detach().to("cpu", copy=True) for name in names if _bare(name) in found}


def _everything(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, tied ones under each of their names."""
    parameters, buffers = module.named_parameters, module.named_buffers
    return {**dict(parameters(remove_duplicate=False)), **dict(buffers(remove_duplicate=False))}


def _differences(found: Mapping[str, Any], module: nn.Module) -> Iterator[str]:
    """Parameters of a module that the state lacks, and tensors that are tied in the module but differ in the state."""
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        value, tied = found.get(_bare(name)), first.setdefault(id(parameter), name)
        if tied != name:  # another name of a tied parameter; the state may hold the parameter under one name only
            twin = found.get(_bare(tied))
            if isinstance(value, Tensor) and isinstance(twin, Tensor) and not torch.equal(value, twin):
                yield f"{name!r} differs from {tied!r} there, and is tied to it here"
        elif not isinstance(value, Tensor) or value.shape != parameter.shape:
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
            yield f"parameter {name!r} of shape {tuple(parameter.shape)} is {what} there"


def _further(found: Mapping[str, Any], module: nn.Module) -> Iterator[str]:
    """Tensors of the state that the module does not have."""
    known = {_bare(name) for name in (*_everything(module), *module.state_dict())}
    for name, value in found.items():
        if isinstance(value, Tensor) and name not in known:
            yield f"{name!r} of shape {tuple(value.shape)} is there and not here"


def _listed(differences: Sequence[str], most: int = 4) -> str:
    more = len(differences) - most
    return ", ".join(differences[:most]) + (f", and {more} more" if more > 0 else "")


def read_file(path: str | PathLike[str], argument: str = "init_state") -> Any:
    """Read a file of `torch.save`, without running code in it.

    Args:
        path: The file.
        argument: The argument that the path was passed as, for error messages.

    Raises:
        OSError: If the file does not exist or can't be opened.
        ValueError: If the file can't be read, or loading it may run code; the message names the argument.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{argument}={str(path)!r} does not exist: pass the path of a Lightning checkpoint or saved state dict as "
            f"{argument}="
        ) from error
    except OSError:  # its message already names the file and the reason
        raise
    except UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not a pickle at all
            raise _unreadable(path, error, argument) from error
        raise ValueError(
            f"{argument}={str(path)!r} holds objects other than tensors and plain values, and loading them may run "
            f"code: if you trust the file, pass its state dict, {argument}=torch.load({str(path)!r}, "
            "weights_only=False)['state_dict']"
        ) from error
    except Exception as error:  # torch.load raises many kinds of errors for empty, truncated and foreign files
        raise _unreadable(path, error, argument) from error


def _unreadable(path: str | PathLike[str], error: Exception, argument: str) -> ValueError:
    found = ": ".join(filter(None, [type(error).__name__, str(error).partition(". ")[0]]))
    return ValueError(
        f"{argument}={str(path)!r} can't be read as a file of torch.save ({found}): pass an undamaged Lightning "
        f"checkpoint or saved state dict as {argument}="
    )


def _bare(name: str) -> str:
    """A name without the prefix that `torch.compile` adds."""
    return name.replace("_orig_mod.", "")


def _digest(state: StateDict) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()
