"""REPAIR: between two networks, the outputs of units get the mean and spread that lie between those of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_probes.functional.units.groups import Group
from lightning_probes.functional.units.repair import Spread, correction, folded
from lightning_probes.functional.wide import widest
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.view import ModelView

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def repairable(view: ModelView, groups: Sequence[Group]) -> list[str]:
    """Linear and convolutional layers that compute hidden units and have a bias, by name.

    Without a bias a layer can't be shifted. Mostly BatchNorm follows, and re-estimating it does the same. Layers that
    have complex weights, share their weight, or run more than once in a pass, are left out. Cost: one pass over a
    micro-batch.

    Args:
        view: The model.
        groups: Its groups of units; the last layer computes none of them.
    """
    computing = {name for group in groups for name, axis in group.producers if axis == 0}
    modules = dict(view.module.named_modules())
    users = Counter(id(p) for module in modules.values() for p in module._parameters.values())
    names = [
        name
        for name, module in modules.items()
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS))
        and module.bias is not None
        and not module.weight.is_complex()
        and f"{name}.weight" in computing
        and users[id(module.weight)] == users[id(module.bias)] == 1
    ]
    calls: Counter[str] = Counter()

    def count(name: str, _outputs: Tensor) -> None:
        calls[name] += 1

    with _watching(view.module, names, count):
        view.detached.run_layers(view.probe_set().first)
    return [name for name in names if calls[name] == 1]


def spreads(view: ModelView, params: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Spread]:
    """Mean and spread of the outputs of layers, averaged over the micro-batches of the first probe set as by BatchNorm.

    Args:
        view: The model and its data.
        params: Parameters and buffers by name.
        layers: Names from `repairable`.

    Returns:
        By the name of the layer. Cost: one forward pass over the set.
    """

    def keep(found: dict[str, Spread], name: str, outputs: Tensor) -> None:
        found[name] = Spread.of(outputs)

    return _averaged(view, params, layers, keep)


def repaired(view: ModelView, params: Mapping[str, Tensor], goal: Mapping[str, Spread]) -> dict[str, Tensor]:
    """Parameters with which the outputs of layers have a given mean and spread, by one pass in forward order.

    Each layer is corrected while it runs, so that the next one sees corrected inputs.

    Args:
        view: The model and its data.
        params: Parameters and buffers by name, such as a point on a line.
        goal: For each layer, such as `spreads` interpolated between the ends of the line.

    Returns:
        `params` with other weights and biases for these layers. Cost: one forward pass over the first probe set.

    Example:
        `goal = {name: here[name].towards(there[name], alpha) for name in here}`
    """

    def correct(found: dict[str, Spread], name: str, outputs: Tensor) -> Tensor:
        found[name] = Spread.of(outputs)
        scale, shift = correction(found[name], goal[name])
        return outputs * scale + shift

    result = dict(params)
    for name, spread in _averaged(view, params, list(goal), correct).items():
        keys = f"{name}.weight", f"{name}.bias"
        weight, bias = (params[key] for key in keys)
        scale, shift = (each.to(weight) for each in correction(spread, goal[name]))
        result.update(zip(keys, folded(weight, bias, scale, shift), strict=True))
    return result


def _averaged(
    view: ModelView, params: Mapping[str, Tensor], layers: Sequence[str],
    look: Callable[[dict[str, Spread], str, Tensor], Tensor | None],
) -> dict[str, Spread]:  # fmt: skip
    """Means and variances that `look` finds in each micro-batch, averaged over all of them."""
    modules = dict(view.module.named_modules())
    units = [len(modules[name].bias) for name in layers]
    like = torch.zeros(2, sum(units), dtype=widest(view.device), device=view.device)

    def moments(batch: MicroBatch) -> Tensor:
        found: dict[str, Spread] = {}
        with _watching(view.module, layers, partial(look, found)):
            view.detached.run_layers(batch, params)
        spreads = [found[name] for name in layers]
        return torch.stack([torch.cat([s.mean for s in spreads]), torch.cat([s.std.square() for s in spreads])])

    means, variances = view.mean(moments, like) if layers else like
    parts = zip(layers, means.split(units), variances.sqrt().split(units), strict=True)
    return {name: Spread(mean, std) for name, mean, std in parts}


@contextmanager
def _watching(module: nn.Module, layers: Sequence[str], look: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `look` with the outputs of layers, one unit a column; what it returns takes their place."""
    modules = dict(module.named_modules())

    def hook(name: str, layer: Any, _inputs: object, output: Tensor) -> Tensor | None:
        units = -1 - len(layer.kernel_size) if isinstance(layer, _CONVOLUTIONS) else -1
        rows = output.detach().movedim(units, -1)
        other = look(name, rows.flatten(0, -2).to(widest(output.device)))
        return None if other is None else other.reshape(rows.shape).movedim(-1, units).to(output)

    handles = [modules[name].register_forward_hook(partial(hook, name)) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
