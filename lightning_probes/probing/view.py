"""What a probe may know of a model in training: parameters, probe batches, loss, logits, layers. Nothing to spoil."""

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
    the batch's number: the same parameters and batch give the same loss, whatever ran before. Use it inside
    `quiet.measuring`, which puts the generators back.

    Attributes:
        twin: The double of the user's module that the passes run on.
        objective: How a batch becomes a loss or logits.
        data: The probe sets by name. The first is the one that is meant where no name is given.
        seed: The probe's seed.
        init_state: Parameters and buffers at the initialisation, on CPU, in the dtypes that they had then; None if
            they are not known. For passes at the initialisation see `initial`.
        optimizers: The parameter groups of the optimizers at this step; empty without a Trainer.
        step: The logger's step.
        run: Where the measurement takes place.
        processes: Those that share the probe sets.
        trials: Whether passes without gradients gave what passes with gradients give, each time that was tried.
        double: Whether a module that is given all its state and its batch in float64 computes in float64 throughout.
        gradients: Whether gradients are on during a pass, its results being detached; None for results with their
            graph.
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
        """The trainable parameters as they are now, detached, by name (tied ones once)."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def initial(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The initial parameters and buffers, or those named, on the device and in the dtype that each has now."""
        now = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        state = self.init_state or {}
        wanted = [name for name in state if name in now] if names is None else names
        return {name: state[name].to(now[name]) for name in wanted}

    def scratch(self) -> dict[str, Tensor]:
        """Copies of all parameters, for passes that may turn out to write to parameters."""
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    @cached_property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def detached(self) -> ModelView:
        """The same view for passes whose results nobody differentiates; take it wherever that is so.

        They run without gradients if the dry run has found that this changes nothing, and as long as they can. It
        would for a loss that differentiates by itself (forces, gradient penalties), and for code that takes another way
        without gradients.
        """
        if self.gradients is not None:
            return self
        return self.without_gradients if self.trials and all(self.trials) else self.with_gradients

    @cached_property
    def with_gradients(self) -> ModelView:
        """The same view for detached results of passes with gradients on."""
        return replace(self, gradients=True)

    @cached_property
    def without_gradients(self) -> ModelView:
        """The same view for results of passes with gradients off."""
        return replace(self, gradients=False)

    @property
    def gradient_clip(self) -> float | None:
        """The norm that training clips gradients to; None if it does not, or there is no training."""
        return self.run.gradient_clip

    def generator(self, *key: int) -> torch.Generator:
        """A generator of the probe's own on the model's device, the same for the same seed and key."""
        return torch.Generator(device=self.device).manual_seed(derived_seed(self.seed, *key))

    def batches(self, split: str | None = None) -> Sequence[MicroBatch]:
        """This process's micro-batches of a probe set, by default of the first."""
        return self.probe_set(split).batches

    def probe_set(self, split: str | None = None) -> ProbeSet:
        """A probe set by name, by default the first."""
        return self.data[next(iter(self.data)) if split is None else split]

    def loss(self, params: Mapping[str, Tensor], batch: MicroBatch) -> Tensor:
        """The user's loss on a micro-batch at these parameters (and buffers, if any are among them), a scalar."""
        return self._run(params, batch, lambda content: self.objective.loss(self.module, content, batch.key))

    def skips(self, batch: MicroBatch) -> bool:
        """Whether `training_step` skips a micro-batch."""
        return self._run({}, batch, lambda content: self.objective.skips(self.module, content, batch.key))

    def logits(self, batch: MicroBatch, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits `(samples, ...)` and targets of a micro-batch, at the current parameters unless others are given."""
        return self._run(params or {}, batch, lambda content: self.objective.logits(self.module, content), "predict_fn")

    def loss_and_logits(self, params: Mapping[str, Tensor], batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """`loss` and `logits` together, in one pass if possible."""
        return self._run(params, batch, lambda content: self.objective.loss_and_logits(self.module, content, batch.key))

    def has_loss(self) -> bool:
        """Whether there is a loss to replay: a `loss_fn`, or the `training_step` of automatic optimisation."""
        return self.objective.loss_fn is not None or (
            hasattr(self.module, "training_step") and getattr(self.module, "automatic_optimization", True)
        )

    def run_layers(self, batch: MicroBatch, params: Mapping[str, Tensor] | None = None) -> None:
        """Run the layers on a micro-batch, by whichever pass there is, so that hooks on the twin are called."""
        if self.has_loss():
            self.loss(params or {}, batch)
        else:
            self.logits(batch, params)

    def mean_loss(self, params: Mapping[str, Tensor], split: str | None = None) -> Tensor:
        """Loss of a probe set: the mean over its micro-batches weighted by their sizes, float64, over all processes."""
        sizes = on_host(self.probe_set(split).sizes)
        return (self.batch_losses(params, split) * sizes).sum() / sizes.sum()

    def batch_losses(self, params: Mapping[str, Tensor], split: str | None = None) -> Tensor:
        """Loss of every micro-batch of a probe set, on whichever process, shape `(micro-batches,)`, float64."""
        return self.per_batch(lambda batch: self.detached.loss(params, batch), split)

    def per_batch(self, compute: Callable[[MicroBatch], Tensor], split: str | None = None) -> Tensor:
        """A scalar of every micro-batch of a probe set, on whichever process, shape `(micro-batches,)`, float64."""
        return self.of_all({batch.index: compute(batch).detach() for batch in self.batches(split)}, split)

    def of_all(self, values: Mapping[int, Tensor], split: str | None = None, shape: Sequence[int] = ()) -> Tensor:
        """Results of every micro-batch of a probe set, on whichever process, by one reading of the device.

        Args:
            values: Results of this process's micro-batches by their index.
            split: Name of the probe set; by default the first.
            shape: Of a result.

        Returns:
            Shape `(micro-batches, *shape)`, float64, on the CPU.
        """
        everything = on_host(0.0).new_zeros(len(self.probe_set(split).sizes), *shape)
        if values:
            everything[[*values]] = on_host(torch.stack([*values.values()]))
        return self.sum_over_processes(everything)

    def mean(self, compute: Callable[[MicroBatch], Tensor], like: Tensor) -> Tensor:
        """Mean of a tensor over the micro-batches of the first probe set weighted by size, over all processes.

        Args:
            compute: Gives the tensor of a micro-batch.
            like: A tensor of the same shape and dtype.
        """
        total = torch.zeros_like(like)
        for batch in self.batches():
            total.add_(compute(batch).detach(), alpha=batch.size / self.probe_set().num_samples)
        return self.sum_over_processes(total)

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the processes of the run; the tensor itself if there is one process."""
        return self.processes.sum(tensor)

    @property
    def synced(self) -> dict[str, Any]:
        """Arguments of a `torchmetrics.Metric` that sums over the processes when it computes."""
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
        # A loss may begin to differentiate after the dry run, as by a gradient penalty after a warm-up.
        result = self.with_gradients._detached_result(params, batch, compute)
        self.trials.append(False)
        return result

    def _as_trained(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that require gradients as the parameters do that they stand for: a loss may differentiate by them."""
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
                return compute(self._on_device(Copier()(batch.content)))
            finally:
                self.twin.forget()

    def _on_device(self, batch: Any) -> Any:
        """Move a batch as Lightning would: through the module's or data module's own transfer hooks."""
        if self.device.type == "cuda":
            batch = pinned(batch)
        if not hasattr(self.module, "transfer_batch_to_device"):
            return move_data_to_device(batch, self.device)
        if not self.double:
            batch = self.run.convert(batch)
        batch = self._hook("on_before_batch_transfer")(batch, 0)
        batch = self._hook("transfer_batch_to_device")(batch, self.device, 0)
        return self._hook("on_after_batch_transfer")(batch, 0)

    def _hook(self, name: str) -> Callable[..., Any]:
        datamodule = self.twin.datamodule
        own = getattr(type(datamodule), name, None)
        overridden = own is not None and not comes_from(own)
        hook: Callable[..., Any] = getattr(datamodule if overridden else self.module, name)
        return hook

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """The run's precision without autocast: measurements in half precision would measure rounding."""
        context = in_double() if self.double else self.run.computing()
        with torch.autocast(self.device.type, enabled=False), context:
            yield


def pinned(batch: Any) -> Any:
    """The batch with its tensors in page-locked memory, whose transfer to a GPU does not wait for what runs there."""
    return tree_map_only(Tensor, _pinned, batch)


def _pinned(tensor: Tensor) -> Tensor:
    # A subclass may forget what it is, and sparse and nested tensors can't be pinned.
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_nested:
        return tensor
    try:
        return tensor.pin_memory()
    except RuntimeError:  # there may be little of such memory
        return tensor
