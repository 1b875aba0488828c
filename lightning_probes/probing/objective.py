"""Computing the loss of a batch, and its logits with their targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes.functional.plain import plain
from lightning_probes.functional.wide import on_host
from lightning_probes.probing.user_code import brief

LossFn: TypeAlias = Callable[[Any, Any], Tensor]
PredictFn: TypeAlias = Callable[[Any, Any], tuple[Tensor, Tensor | None]]

_PARAMETERS: WeakKeyDictionary[Callable[..., Any], tuple[str, ...]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Objective:
    """The loss and the predictions that a probe measures.

    Args:
        loss_fn: `loss_fn(module, batch)` returns the mean loss of a batch. By default `training_step` is replayed.
        predict_fn: `predict_fn(module, batch)` returns logits, whose first dimension is the sample, and their targets
            (or None). By default `forward` is called on the first part of an `(inputs, targets, ...)` batch, or on a
            mapping with `labels`.

    Example:
        >>> objective = Objective(loss_fn=lambda module, batch: module(batch).square().mean())
        >>> objective.loss(nn.Linear(2, 1), torch.zeros(4, 2), 0).shape
        torch.Size([])
    """

    loss_fn: LossFn | None = None
    predict_fn: PredictFn | None = None

    def loss(self, module: nn.Module, batch: Any, index: int) -> Tensor:
        """The loss of a batch, as a scalar.

        Raises:
            MisconfigurationException: If no loss can be computed; the message names `loss_fn`.
        """
        output = self._output(module, batch, index)
        if output is None and self.loss_fn is None:  # Lightning skips such a batch, so it has no loss
            # NaN, and so that every derivative is NaN too.
            return torch.stack([parameter.square().sum() for parameter in module.parameters()]).sum() * torch.nan
        if not isinstance(output, Tensor) or output.numel() != 1:
            found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            origin = "training_step" if self.loss_fn is None else "loss_fn"
            raise MisconfigurationException(
                f"{origin} returned {found} instead of a scalar loss (or a dict with 'loss'): pass "
                "loss_fn=lambda module, batch: ... that returns the mean loss of a batch"
            )
        return plain(output).reshape(())

    def skips(self, module: nn.Module, batch: Any, index: int) -> bool:
        """Whether `training_step` returns None, so that Lightning skips the batch."""
        return self.loss_fn is None and self._output(module, batch, index) is None

    def _output(self, module: nn.Module, batch: Any, index: int) -> Any:
        output: Any = _training_step(module, batch, index) if self.loss_fn is None else self.loss_fn(module, batch)
        return output["loss"] if isinstance(output, Mapping) and "loss" in output.keys() else output  # noqa: SIM118

    def logits(self, module: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Logits `(samples, ...)` of a batch and their targets, if it has any.

        Raises:
            MisconfigurationException: If inputs and targets can't be distinguished, or the model's output is neither a
                tensor nor has `.logits`; the message names `predict_fn`.
        """
        if self.predict_fn is not None:
            logits, targets = self.predict_fn(module, batch)
            return (plain(logits) if isinstance(logits, Tensor) else logits), targets
        targets = _targets_of(batch)
        output = _forward_mapping(module, batch) if isinstance(batch, Mapping) else module(batch[0])
        return _aligned(output, targets)

    def loss_and_logits(self, module: nn.Module, batch: Any, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss, logits and targets: in one pass if computing the loss calls `forward` once, otherwise in two passes."""
        outputs: list[Any] = []
        handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            loss = self.loss(module, batch, index)
        finally:
            handle.remove()
        if self.predict_fn is None and len(outputs) == 1:
            return loss, *_aligned(outputs[0], _targets_of(batch))
        return loss, *self.logits(module, batch)


def _training_step(module: nn.Module, batch: Any, index: int) -> Any:
    step = getattr(module, "training_step", None)
    if step is None:
        raise MisconfigurationException(
            f"{type(module).__name__} has no training_step: pass loss_fn=lambda module, batch: ..."
        )
    if not getattr(module, "automatic_optimization", True):
        raise MisconfigurationException(
            f"{type(module).__name__} uses manual optimization, so its training_step can't be replayed: pass "
            "loss_fn=lambda module, batch: ... that returns the loss to measure"
        )
    names = _parameters_of(step)
    if "dataloader_iter" in names:
        raise MisconfigurationException(
            "a training_step that takes dataloader_iter can't be replayed on one batch: pass "
            "loss_fn=lambda module, batch: ..."
        )
    return step(batch, index) if len(names) > 1 else step(batch)


def _parameters_of(step: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters. They are cached, because finding them takes 5 % of a pass of a very small model."""
    function = getattr(step, "__func__", None)
    if function is None:
        return tuple(inspect.signature(step).parameters)
    if function not in _PARAMETERS:
        _PARAMETERS[function] = tuple(inspect.signature(step).parameters)
    return _PARAMETERS[function]


def _forward_mapping(module: nn.Module, batch: Mapping[str, Any]) -> Any:
    """Call `forward` with those entries of a mapping that it has parameters for, otherwise with the whole mapping."""
    parameters = inspect.signature(module.forward).parameters
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    keys = list(batch.keys())  # a mapping may iterate over its rows
    if any(name not in keys for name in required):
        return module(batch)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    wanted = [name for name in keys if name in parameters or takes_all]
    return module(**{name: batch[name] for name in wanted if name != "labels" or "labels" in required})


def _targets_of(batch: Any) -> Any:
    if isinstance(batch, Mapping) and isinstance(batch.get("labels", None), Tensor):
        return batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[1]
    raise MisconfigurationException(
        f"inputs and targets can't be distinguished in a batch of type {type(batch).__name__}{_keys(batch)}: pass "
        "predict_fn=lambda module, batch: (logits, targets)"
    )


def _aligned(output: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
    """Logits and the targets that they predict; None for targets that are not a tensor."""
    logits = plain(_logits_of(output))
    if not isinstance(targets, Tensor):
        return logits, None
    targets = plain(targets)
    if type(output).__name__.startswith("CausalLMOutput"):
        # Causal models of Transformers predict the next token, and shift the labels inside the loss.
        return logits[:, :-1], targets[:, 1:]
    return logits, targets


def _logits_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    found = output.get("logits", None) if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise MisconfigurationException(
        f"the model's output is {type(output).__name__}, neither a tensor nor something with .logits: pass "
        "predict_fn=lambda module, batch: (logits, targets)"
    )


def _keys(batch: Any) -> str:
    return f" with keys {brief(sorted(map(str, batch.keys())))}" if isinstance(batch, Mapping) else ""


def same_loss(first: Tensor, second: Tensor) -> bool:
    """Whether two losses are equal up to the rounding of kernels that sum in random order; NaN equals NaN.

    Example:
        >>> same_loss(torch.tensor(1.0), torch.tensor(1.1))
        False
    """
    return torch.allclose(on_host(first), on_host(second), rtol=1e-5, atol=0.0, equal_nan=True)
