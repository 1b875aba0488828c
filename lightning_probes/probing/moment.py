"""One optimizer step of training, as monitors and interventions see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_probes.probing.isolation.copies import Copies
from lightning_probes.probing.isolation.seeding import derived_seed
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.optimizers import OptimizerGroup


@dataclass(frozen=True)
class Moment:
    """Training just before or just after an optimizer takes a step, for a `Monitor` to read.

    Each tensor is a copy of its own, made when it is asked for. Ask for what you need, and once.

    Attributes:
        step: The logger's step; the first is 0, also after it was taken.
        params: The trainable parameters by name.
        gradients: The gradients that training steps with, by the name of their parameter, before they are clipped: a
            mean over the accumulated batches and over processes. Only of parameters that have one.
        optimizers: The optimizers' parameter groups, see `OptimizerGroup`.
        loss: What `training_step` returned for the last batch of this process; None before the step, and where it
            returned no loss.
        processes: The processes of the run.
        seed: The monitor's seed.
    """

    step: int
    params: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    optimizers: Sequence[OptimizerGroup]
    loss: Tensor | None
    processes: Processes
    seed: int

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the processes; the tensor itself if there is one process."""
        return self.processes.sum(tensor)

    def generator(self, *key: int) -> torch.Generator:
        """A generator of the monitor's own on the CPU, the same for the same seed, step and key."""
        return torch.Generator().manual_seed(derived_seed(self.seed, self.step, *key))


def moment(
    module: nn.Module, step: int, optimizers: Sequence[OptimizerGroup], loss: Tensor | None, processes: Processes,
    seed: int,
) -> Moment:  # fmt: skip
    """Training as it is now."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    return Moment(step, Copies(trained), Copies(gradients_of(module)), optimizers, loss, processes, seed)


def gradients_of(module: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Tensor]:
    """Training's own gradients by the name of their parameter; with an optimizer, of those that it updates."""
    updated = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {
        name: parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and (updated is None or id(parameter) in updated)
    }
