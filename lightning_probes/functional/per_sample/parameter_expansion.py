"""Repeat a parameter used outside any layer (position embedding, class token) for each sample while its owner runs.

Each sample has its own copy then, so one ordinary backward pass gives the gradient of each sample separately.
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
    """Repeat parameters over samples and capture them whenever their owner is called inside the context.

    A dim 0 of size 1 is expanded; otherwise a new dim 0 is added in front. Both suit code that broadcasts. The number
    of samples is the size of dim 0 of the first tensor among the owner's arguments.

    Args:
        module: The model.
        parameters: Maps the owner to the names of its own parameters.
        capture: Records them as calls with `parameters` and without arguments.
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
