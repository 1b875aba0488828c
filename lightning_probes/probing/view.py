"""A probe's view of a model in training: parameters, probe batches, loss, logits, layers. It can't disturb training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_probes.functional.wide import on_host
from lightning_probes.probing.data.drawing import MicroBatch, ProbeSet
from lightning_probes.probing.isolation.copying import Copier
from lightning_probes.probing.isolation.double import in_double
from lightning_probes.probing.isolation.seeding import derived_seed, seed_generators
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.origin import comes_from
from lightning_probes.probing.processes import Processes, is_out_of_memory
from lightning_probes.probing.run.bare import BareRun
from lightning_probes.probing.run.init_state import StateDict
from lightning_probes.probing.run.optimizers import OptimizerGroup
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.user_code import user_code

T = TypeVar("T")


@dataclass(frozen=True)
class ModelView:
    """A model at one moment of training, as pure functions of parameters and probe batches.

    Every pass over a micro-batch runs on the twin, on a fresh copy of the batch, with all random generators seeded by
    the batch's number. So the same parameters and batch always give the same loss. Use it inside `quiet.measuring`,
    which restores the generators.

    Attributes:
        twin: The copy of the user's module that runs the passes.
        objective: Computes the loss and the logits of a batch.
        data: The probe sets by name. Methods use the first one if no name is given.
        seed: The probe's seed.
        init_state: Parameters and buffers at the initialisation, on the CPU, in their dtypes at that time; None if
            they are not known. For passes at the initialisation see `initial`.
        optimizers: The parameter groups of the optimizers at this step; empty without a Trainer.
        step: The logger's step.
        run: The run in which the measurement takes place.
        processes: The processes that share the probe sets.
        trials: For each check: whether a pass without gradients gave the same result as a pass with gradients.
        double: Whether passes compute in float64, for parameters and batches in float64.
        gradients: None for results with their graph. Otherwise results are detached, and this says whether gradients
            are on during the pass.
    """

    twin: Twin
    objective: Objective
    data: dict[str, ProbeSet]
    seed: int = 0
    init_state: StateDict | None = None
    optimizers: Sequence[OptimizerGroup] = ()
    step: int = 0
    run: Run = field(default_factory=BareRun)
    processes: Processes = field(default_factory=Processes)
    trials: list[bool] = field(default_factory=list)
    double: bool = False
    gradients: bool | None = None

    @property
    def module(self) -> nn.Module:
        """The twin's module."""
        return self.twin.module

    @property
    def params(self) -> dict[str, Tensor]:
        """The present trainable parameters, detached, by name. Tied parameters appear once."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def initial(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The initial parameters and buffers (or only those in `names`), with their present device and dtype."""
        now = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        state = self.init_state or {}
        wanted = [name for name in state if name in now] if names is None else names
        return {name: state[name].to(now[name]) for name in wanted}

    def scratch(self) -> dict[str, Tensor]:
        """Copies of all parameters, for passes that may write to parameters."""
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    @cached_property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def detached(self) -> ModelView:
        """The same view, but with detached results. Use it for all results that you do not differentiate.

        Passes run without gradients if the checks have found that this does not change the result. It changes the
        result of a loss that calls autograd itself (forces, gradient penalties), and of code that depends on
        `torch.is_grad_enabled()`.
        """
        if self.gradients is not None:
            return self
        return self.without_gradients if self.trials and all(self.trials) else self.with_gradients

    @cached_property
    def with_gradients(self) -> ModelView:
        """The same view, with detached results of passes with gradients on."""
        return replace(self, gradients=True)

    @cached_property
    def without_gradients(self) -> ModelView:
        """The same view, with results of passes with gradients off."""
        return replace(self, gradients=False)

    @property
    def gradient_clip(self) -> float | None:
        """The norm to which training clips gradients; None without clipping by norm or without training."""
        return self.run.gradient_clip

    def generator(self, *key: int) -> torch.Generator:
        """A random generator on the model's device for this probe; equal seed and key give equal numbers."""
        return torch.Generator(device=self.device).manual_seed(derived_seed(self.seed, *key))

    def batches(self, split: str | None = None) -> Sequence[MicroBatch]:
        """This process's micro-batches of a probe set, by default the first set."""
        return self.probe_set(split).batches

    def probe_set(self, split: str | None = None) -> ProbeSet:
        """A probe set by name, by default the first."""
        return self.data[next(iter(self.data)) if split is None else split]

    def loss(self, params: Mapping[str, Tensor], batch: MicroBatch) -> Tensor:
        """The user's loss on a micro-batch, a scalar, at these parameters. `params` may contain buffers too."""
        return self._run(params, batch, lambda content: self.objective.loss(self.module, content, batch.key))

    def skips(self, batch: MicroBatch) -> bool:
        """Whether `training_step` skips a micro-batch."""
        return self._run({}, batch, lambda content: self.objective.skips(self.module, content, batch.key))

    def logits(self, batch: MicroBatch, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits `(samples, ...)` and targets of a micro-batch, by default at the current parameters."""
        return self._run(params or {}, batch, lambda content: self.objective.logits(self.module, content), "predict_fn")

    def loss_and_logits(self, params: Mapping[str, Tensor], batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """`loss` and `logits` together, in one pass if possible."""
        return self._run(params, batch, lambda content: self.objective.loss_and_logits(self.module, content, batch.key))

    def has_loss(self) -> bool:
        """Whether there is a loss: a `loss_fn`, or a `training_step` with automatic optimization."""
        return self.objective.loss_fn is not None or (
            hasattr(self.module, "training_step") and getattr(self.module, "automatic_optimization", True)
        )

    def run_layers(self, batch: MicroBatch, params: Mapping[str, Tensor] | None = None) -> None:
        """Run the layers on a micro-batch, so that hooks on the twin are called: by the loss, or else by the logits."""
        if self.has_loss():
            self.loss(params or {}, batch)
        else:
            self.logits(batch, params)

    def mean_loss(self, params: Mapping[str, Tensor], split: str | None = None) -> Tensor:
        """The loss of a probe set: the mean over its micro-batches in all processes, weighted by size, in float64."""
        sizes = on_host(self.probe_set(split).sizes)
        return (self.batch_losses(params, split) * sizes).sum() / sizes.sum()

    def batch_losses(self, params: Mapping[str, Tensor], split: str | None = None) -> Tensor:
        """The loss of every micro-batch of a probe set, in all processes: shape `(micro-batches,)`, float64."""
        return self.per_batch(lambda batch: self.detached.loss(params, batch), split)

    def per_batch(self, compute: Callable[[MicroBatch], Tensor], split: str | None = None) -> Tensor:
        """A scalar for every micro-batch of a probe set, in all processes: shape `(micro-batches,)`, float64."""
        return self.of_all({batch.index: compute(batch).detach() for batch in self.batches(split)}, split)

    def of_all(self, values: Mapping[int, Tensor], split: str | None = None, shape: Sequence[int] = ()) -> Tensor:
        """Results for every micro-batch of a probe set, in all processes, with one transfer from the device.

        Args:
            values: Results of this process's micro-batches by their index.
            split: Name of the probe set; by default the first.
            shape: The shape of one result.

        Returns:
            Shape `(micro-batches, *shape)`, float64, on the CPU.
        """
        everything = on_host(0.0).new_zeros(len(self.probe_set(split).sizes), *shape)
        if values:
            everything[[*values]] = on_host(torch.stack([*values.values()]))
        return self.sum_over_processes(everything)

    def mean(self, compute: Callable[[MicroBatch], Tensor], like: Tensor) -> Tensor:
        """Mean of a tensor over the micro-batches of the first probe set in all processes, weighted by size.

        Args:
            compute: Returns the tensor of a micro-batch.
            like: A tensor of the same shape and dtype.
        """
        total, probe_set = torch.zeros_like(like), self.probe_set()
        samples = probe_set.num_samples
        for batch in probe_set.batches:
            total.add_(compute(batch).detach(), alpha=batch.size / samples)
        return self.sum_over_processes(total)

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the processes of the run; the tensor itself if there is one process."""
        return self.processes.sum(tensor)

    @property
    def synced(self) -> dict[str, Any]:
        """Arguments for a `torchmetrics.Metric`, so that its `compute` sums over the processes."""
        return {"sync_on_compute": self.processes.size > 1, "dist_sync_fn": self.processes.gather}

    def _run(
        self, params: Mapping[str, Tensor], batch: MicroBatch, compute: Callable[[Any], T], argument: str = "loss_fn"
    ) -> T:
        with user_code(argument):
            if self.gradients is None:
                return self._pass(params, batch, compute)
            result = self._detached_result(params, batch, compute)
        detached: T = tree_map_only(Tensor, Tensor.detach, result)
        return detached

    def _detached_result(self, params: Mapping[str, Tensor], batch: MicroBatch, compute: Callable[[Any], T]) -> T:
        if self.gradients:
            with torch.enable_grad():
                return self._pass(self._as_trained(params), batch, compute)
        try:
            with torch.no_grad():
                return self._pass(params, batch, compute)
        except RuntimeError as error:
            if not self.trials or is_out_of_memory(error):
                raise
        # A loss may begin to call autograd after the checks, for example for a gradient penalty after a warm-up.
        result = self.with_gradients._detached_result(params, batch, compute)
        self.trials.append(False)
        return result

    def _as_trained(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, with `requires_grad` as in the module's parameters, because a loss may call autograd itself."""
        trained = self._trained
        return {
            name: tensor.detach().requires_grad_() if name in trained else tensor for name, tensor in params.items()
        }

    @cached_property
    def _trained(self) -> frozenset[str]:
        return frozenset(self.params)

    def _pass(self, params: Mapping[str, Tensor], batch: MicroBatch, compute: Callable[[Any], T]) -> T:
        with self._precision():
            seed_generators(self.seed, batch.key)
            try:
                self.twin.use(params)
                content = Copier()(batch.content)
                return compute(content if batch.transferred else self._on_device(content))
            finally:
                self.twin.forget()

    def _on_device(self, batch: Any) -> Any:
        """Move a batch as Lightning does: through the transfer hooks of the module or data module."""
        if self.device.type == "cuda":
            batch = pinned(batch)
        if not hasattr(self.module, "transfer_batch_to_device"):
            return move_data_to_device(batch, self.device)
        if not self.double:
            batch = self.run.convert(batch)
        datamodule = self.twin.datamodule
        batch = self._hook("on_before_batch_transfer", datamodule)(batch, 0)
        batch = self._hook("transfer_batch_to_device", datamodule)(batch, self.device, 0)
        return self._hook("on_after_batch_transfer", datamodule)(batch, 0)

    def _hook(self, name: str, datamodule: Any) -> Callable[..., Any]:
        own = getattr(type(datamodule), name, None)
        overridden = own is not None and not comes_from(own)
        hook: Callable[..., Any] = getattr(datamodule if overridden else self.module, name)
        return hook

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """The run's precision without autocast, because results in half precision would be dominated by rounding."""
        context = in_double() if self.double else self.run.computing()
        with torch.autocast(self.device.type, enabled=False), context:
            yield


def pinned(batch: Any) -> Any:
    """The batch with its tensors in page-locked memory, so that the transfer to a GPU is asynchronous."""
    return tree_map_only(Tensor, _pinned, batch)


def _pinned(tensor: Tensor) -> Tensor:
    # Pinning may lose the subclass of a tensor, and sparse and nested tensors can't be pinned.
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_nested:
        return tensor
    try:
        return tensor.pin_memory()
    except RuntimeError:  # page-locked memory may be scarce
        return tensor
