"""The twin: a private double of the user's module that a probe may run, hook and reseed without anybody noticing.

Replaying `training_step` on the module itself would leave traces: metric states, counters, lists of outputs, logged
values. The twin has its own copy of all of those, shares the storage of the parameters, sees the Trainer through a
read-only view, and forgets after each pass whatever that pass changed.

What lives outside the module (globals, closures of user hooks) is out of reach.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from lightning_probes.probing.copying import Copier
from lightning_probes.probing.trainer_view import TrainerView

# A container this long is data rather than state; telling whether one item changed would cost more than the pass.
_LONG = 4096


class Twin:
    """A double of a module in its own eval mode, on the same parameter storage.

    Args:
        module: The user's module. It is read, never changed.

    Attributes:
        module: The double. Hook it, switch its submodules, run it; nothing reaches the original.
        trained: Names of the submodules that the user trains in training mode (a BatchNorm kept in eval mode by its
            owner is frozen, and is not among them). All of them where the module was in eval mode throughout.
        hidden_parameters: Parameters found outside `module.parameters()`, by where they hang.

    Raises:
        ValueError: If a lazy module has not seen its first batch yet.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> twin = Twin(module)
        >>> twin.module.weight.data_ptr() == module.weight.data_ptr(), twin.module.training, module.training
        (True, False, True)
    """

    def __init__(self, module: nn.Module) -> None:
        memo: dict[int, Any] = {}
        for name, parameter in module.named_parameters():
            if is_lazy(parameter):
                raise ValueError(
                    f"parameter {name!r} is not initialised: run one batch through the lazy module before `fit`"
                )
            memo[id(parameter)] = _alias(parameter)
        trainer = getattr(module, "_trainer", None)
        view = None if trainer is None else TrainerView(trainer)
        if view is not None:
            memo[id(trainer)] = view

        copier = Copier(memo, share=_is_shared)
        self.module: nn.Module = copier(module)
        self.hidden_parameters = copier.hidden_parameters
        training = [name for name, child in module.named_modules() if child.training]
        self.trained = frozenset(training) or frozenset(name for name, _ in module.named_modules())
        if view is not None:
            view.attach(self.module)
        for child in self.module.modules():
            _silence(child)
        _eval_mode(self.module)
        self._remember(copier)

    def _remember(self, copier: Copier) -> None:
        self._tensors = [(original, copied, copied._version) for original, copied in copier.tensors]
        self._containers = [(container, copy.copy(container)) for container in copier.containers]
        self._attributes = [(thing, dict(thing.__dict__)) for thing in copier.objects if hasattr(thing, "__dict__")]

    def forget(self) -> None:
        """Undo what a pass changed: attributes, containers, buffers and other tensors."""
        for thing, attributes in self._attributes:
            thing.__dict__.clear()
            thing.__dict__.update(attributes)
        for container, content in self._containers:
            if len(content) < _LONG or len(container) != len(content):
                _refill(container, content)
        for i, (original, copied, version) in enumerate(self._tensors):
            if copied._version != version:
                with torch.no_grad():
                    copied.detach_().copy_(original)
                self._tensors[i] = (original, copied, copied._version)


def _alias(parameter: nn.Parameter) -> nn.Parameter:
    alias = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    alias.__dict__.update(parameter.__dict__)
    return alias


def _is_shared(value: Any) -> bool:
    """What a pass reads from and does not change, or can't be doubled: data, optimizers, the framework's own objects."""
    if isinstance(value, (Dataset, DataLoader, Optimizer, LRScheduler)):
        return True
    if isinstance(value, (nn.Module, dict, Tensor)):
        return False
    return type(value).__module__.partition(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric", "wandb")


def _silence(module: nn.Module) -> None:
    """Keep a submodule from reporting to, or waiting for, anybody."""
    if hasattr(module, "log") and hasattr(module, "log_dict"):
        module.log = module.log_dict = _ignore
    if hasattr(module, "sync_on_compute") and hasattr(module, "dist_sync_on_step"):
        module.sync_on_compute = module.dist_sync_on_step = False


def _ignore(*_: Any, **__: Any) -> None:
    pass


def _eval_mode(module: nn.Module) -> None:
    """The module's own evaluation mode: some un-scale their output or switch targets in the hook that sets it."""
    own = getattr(type(module), "on_validation_model_eval", None)
    if own is None or own.__module__.startswith(("lightning.", "pytorch_lightning.")):
        module.eval()
    else:
        own(module)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
        return
    container.clear()
    container.extend(content) if hasattr(container, "extend") else container.update(content)
