"""One optimizer step of training, as monitors and interventions see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_probes.probing.isolation.copies import Copies
from lightning_probes.probing.isolation.seeding import derived_seed
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.optimizers import OptimizerGroup, Stepping


@dataclass(frozen=True)
class Moment:
    """The state of training just before or after an optimizer step, which a `Monitor` reads.

    Each access to a tensor makes a copy. Access only the tensors that you need, and only once. To save the memory of
    copies, read `params.originals` and `gradients.originals`, and never change what is in them.

    Attributes:
        step: The logger's step. For the first optimizer step it is 0, both before and after.
        params: The trainable parameters by name.
        gradients: Training's own gradients by parameter name, before clipping: the mean over accumulated batches and
            processes. Parameters without a gradient are absent. Copies are without the factor of a gradient scaler;
            `originals` may still have it, see `Stepping.scale`.
        optimizers: The optimizers' parameter groups, see `OptimizerGroup`.
        loss: The loss that `training_step` returned for the last batch of this process; None before the step, and if it
            returned no loss.
        processes: The processes of the run.
        seed: The monitor's seed.
        stepping: The optimizer that is about to step; None after the step.
    """

    step: int
    params: Copies
    gradients: Copies
    optimizers: Sequence[OptimizerGroup]
    loss: Tensor | None
    processes: Processes
    seed: int
    stepping: Stepping | None = None

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the processes; the tensor itself if there is one process."""
        return self.processes.sum(tensor)

    def generator(self, *key: int) -> torch.Generator:
        """A random generator on the CPU for this monitor; equal seed, step and key give equal numbers."""
        return torch.Generator().manual_seed(derived_seed(self.seed, self.step, *key))


def moment(
    module: nn.Module, step: int, optimizers: Sequence[OptimizerGroup], loss: Tensor | None, processes: Processes,
    seed: int, stepping: Stepping | None = None,
) -> Moment:  # fmt: skip
    """The present state of training."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    gradients = _Unscaled(gradients_of(module), stepping)
    return Moment(step, Copies(trained), gradients, optimizers, loss, processes, seed, stepping)


class _Unscaled(Copies):
    """Gradients by parameter name. Copies are without the factor of a gradient scaler."""

    def __init__(self, originals: Mapping[str, Tensor], stepping: Stepping | None) -> None:
        super().__init__(originals)
        self._stepping = stepping

    def __getitem__(self, name: str) -> Any:
        gradient, stepping = super().__getitem__(name), self._stepping
        if stepping is None or stepping.scale is None or name not in stepping.names:
            return gradient
        return gradient / stepping.scale.to(gradient)


def gradients_of(module: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Tensor]:
    """Training's own gradients by parameter name; with `optimizer`, only of the parameters that it updates."""
    updated = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {
        name: parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and (updated is None or id(parameter) in updated)
    }
