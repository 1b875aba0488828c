"""A parameter used outside any layer (position embedding, class token), repeated for each sample while its owner runs.

What each sample does with its copy then stays apart from what the others do, in one ordinary backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_probes.functional.layer_capture import Capture


@contextmanager
def expanded_parameters(module: nn.Module, parameters: Mapping[str, Sequence[str]], capture: Capture) -> Iterator[None]:
    """Repeat parameters over samples whenever their owner is called, and capture them, while the context lasts.

    A dim 0 of size 1 is expanded, otherwise a new dim 0 is put in front; so it fits code that broadcasts. The number of
    samples is read off dim 0 of the first tensor among the owner's arguments.

    Args:
        module: The model.
        parameters: Owner to the names of parameters of its own.
        capture: Where they are noted, as calls with `parameters` and without arguments.
    """
    originals: dict[nn.Module, dict[str, nn.Parameter | None]] = {}

    def put_back(owner: nn.Module, *_: Any) -> None:
        owner._parameters.update(originals.pop(owner, {}))

    def expand(name: str, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor) and leaf.ndim]
        if not tensors or not torch.is_grad_enabled():
            return
        put_back(owner)
        originals[owner] = {local: owner._parameters[local] for local in parameters[name]}
        copies = {
            local: value.expand(len(tensors[0]), *(value.shape[1:] if value.shape[:1] == (1,) else value.shape))
            for local, value in originals[owner].items()
            if value is not None
        }
        owner._parameters.update(copies)  # type: ignore[arg-type]  # not leaves, so not nn.Parameter
        capture.add(name, (), {}, copies, tuple(copies))

    handles = []
    try:
        for name in parameters:
            owner = module.get_submodule(name)
            handles.append(owner.register_forward_pre_hook(partial(expand, name), with_kwargs=True))
            handles.append(owner.register_forward_hook(put_back, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for owner in [*originals]:
            put_back(owner)
