"""A callback that measures on schedule, on a twin of the user's module."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from typing_extensions import Unpack

from lightning_probes.probing.arguments import AnyData, ProbeArguments, check_data_arguments
from lightning_probes.probing.checks import naming
from lightning_probes.probing.data.drawing import DataSources
from lightning_probes.probing.isolation.quiet import measuring
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.run.bare import BareRun
from lightning_probes.probing.run.init_state import InitStateSource, StateDict, load_state
from lightning_probes.probing.run.progress import captured
from lightning_probes.probing.run.record import named
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.runner import Runner
from lightning_probes.probing.run.settings import settings_of
from lightning_probes.probing.run.trainer import TrainerRun
from lightning_probes.probing.scheduled import Scheduled
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting.wandb.artifact import downloaded, is_artifact
from lightning_probes.results import Result


class Probe(Scheduled):
    """A measurement that looks at a training run from the inside and leaves it bit-identical.

    A new probe overrides `measure`. It overrides `prepare` to check, before training time is spent, whether it can
    measure. It never touches a logger, a process group, the Trainer or the user's module.

    Args:
        name: Prefix of the probe's keys, and its key in a checkpoint. Set it to use two probes of one class.
        schedule: When to measure: one schedule or several. A probe measures at most once per step.
        data: What to measure on: "train", "val", a DataLoader or a Dataset. Some probes take several of these: a
            sequence, or a mapping with names of your own such as ``{"train": "train", "shifted": loader}``. Results on
            the first one have plain keys; results on another have its name in their key, as in ``shifted/loss``.
        num_samples: How many samples to draw from each. They are drawn once and reused, so that measurements at
            different steps are comparable. If they take more than 512 MiB in a process, each pass reads them again.
        micro_batch_size: The largest number of samples in one pass, which bounds the memory. By default the loader's
            batch size.
        loss_fn: `loss_fn(module, batch)` returns the mean loss of a batch. By default `training_step` is replayed.
        predict_fn: `predict_fn(module, batch)` returns (logits, targets). By default `forward` is called.
        init_state: The initialisation, if the probe did not see the start of the run: the path of a checkpoint, a state
            dict, a module, or "wandb:entity/project/artifact:alias".
        on_flag: What happens, besides logging, when a flag of level "warning" is raised: "alert" sends a W&B alert,
            "stop" also ends training.
        on_error: "raise" stops training if the probe fails. "warn" reports the error once and continues without this
            measurement; for this, it keeps one more copy of the parameters, and of large data, while it measures.
        seed: Determines the drawn samples and every random number of the probe.

    Attributes:
        carried: Values that one measurement leaves for the next, also in a resumed run: tensors on the CPU and plain
            values, under names of the probe's choice. Each checkpoint holds them. A failed measurement does not change
            them.

    Raises:
        ValueError: If an argument is out of range.
    """

    recorded: Mapping[str, Any] = {"batch_norm": "eval"}
    needs_init_state: bool = False
    states: ClassVar[tuple[str, ...]] = ("init_state",)  # arguments that name states of a module
    chooses_data: ClassVar[bool] = False  # if data is None

    def __init__(self, **shared: Unpack[ProbeArguments[AnyData]]) -> None:
        given = self._complete(shared)
        super().__init__(
            name=given["name"], schedule=given["schedule"], on_flag=given["on_flag"], on_error=given["on_error"],
            seed=given["seed"],
        )  # fmt: skip
        check_data_arguments(given, self.chooses_data)
        self.data = given["data"]
        self.num_samples = given["num_samples"]
        self.micro_batch_size = given["micro_batch_size"]
        self.objective = Objective(given["loss_fn"], given["predict_fn"])
        self.init_state = given["init_state"]
        self._downloads: dict[str, Path] = {}

    @abstractmethod
    def measure(self, view: ModelView) -> Iterable[Result]:
        """Measure once.

        Args:
            view: The model at this moment, and the probe's data.

        Returns:
            Results under relative keys, e.g. `Scalar("trace", ...)`.
        """

    def prepare(self, view: ModelView) -> None:
        """Check, before the first optimizer step, whether this probe can measure; raise an error if it can't."""

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether smaller micro-batches give the same results, so that they may be halved when memory runs out.

        Args:
            pairs: A view of a few samples in micro-batches of two.
            singles: A view of the same samples one by one.
        """
        return False

    def sources(self, run: Run) -> DataSources:
        """The data to draw samples from: `data`, unless the probe chooses it."""
        return self.data if isinstance(self.data, (list, tuple, Mapping)) else (self.data,)

    def evaluate(self, module: nn.Module, loader: Any, init_state: InitStateSource | None = None) -> dict[str, Result]:
        """Measure a module without a Trainer.

        Args:
            module: A LightningModule, or any module with `loss_fn` or `predict_fn`. It is not changed.
            loader: A DataLoader or Dataset from which the probe data is drawn.
            init_state: The initialisation, for probes that compare with it. By default the constructor's argument.

        Returns:
            The results by full key.

        Example:
            >>> import torch
            >>> from lightning_probes import Sharpness
            >>> data = torch.utils.data.TensorDataset(torch.randn(32, 2), torch.randn(32, 1))
            >>> probe = Sharpness(loss_fn=lambda module, batch: (module(batch[0]) - batch[1]).square().mean())
            >>> "sharpness/lambda_max" in probe.evaluate(nn.Linear(2, 1), data)
            True
        """
        probe = copy.copy(self)  # so that this measurement and those of a fit do not affect each other
        own = {name: copy.copy(value) for name, value in vars(self).items() if type(value) in (dict, list, set)}
        vars(probe).update(own)
        probe._reset()
        if init_state is not None:
            probe.init_state = init_state
        run = BareRun(module, loader)
        with measuring():
            with naming(type(self).__name__):
                probe.progress.log.initial = probe.state("init_state", module)
                probe.runner.draw(run)
            probe.runner.try_out(run)
            return named(self.name, probe.runner.measure(run))

    def state(self, argument: str, module: nn.Module, whole: bool = False) -> StateDict | None:
        """The state that an argument names, on the CPU, under the names of a module; see `load_state`.

        Args:
            argument: One of `states`. An artifact of W&B is downloaded if that was not done in `setup`.
            module: The module that the state is to fit.
            whole: Refuse a state with tensors that the module lacks.

        Returns:
            Copies of its tensors; None if the argument is None.

        Raises:
            ValueError: If it can't be read, or belongs to another module; the message names the argument.
        """
        source = getattr(self, argument)
        if is_artifact(source):
            source = self._downloads.get(source) or downloaded(source, argument)
        return None if source is None else load_state(source, module, argument, whole)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what can't work, start to notice checkpoints, and download the artifacts that arguments name."""
        super().setup(trainer, pl_module, stage)
        asked = {source: name for name in self.states if is_artifact(source := getattr(self, name))}
        if stage != "fit" or not asked or self.on_error == "warn":  # a warning comes with the first batch
            return
        run = TrainerRun(trainer, pl_module)
        with measuring(), naming(type(self).__name__), run.processes.together():
            for source, name in asked.items():
                self._downloads[source] = run.once_a_node(partial(downloaded, source, name))

    def _reset(self) -> None:
        super()._reset()
        self.runner = Runner(self, self.progress)

    def _reset_fit(self) -> None:
        super()._reset_fit()
        self.runner = Runner(self, self.progress)

    def _remember_start(self, run: Run) -> None:
        if self.needs_init_state:
            log = self.progress.log
            given = self.state("init_state", run.module)
            log.find_initial(given, run.module, run.step, captured(run.siblings))
            self.progress.captured = log.initial if self.init_state is None else None

    def _make_ready(self, run: Run) -> None:
        self.runner.draw(run)

    def _try_out(self, run: Run) -> None:
        self.runner.try_out(run)

    def _act(self, run: Run) -> None:
        if self._is_open(run.step):
            self._event(run, lambda: self.runner.measure(run))

    def _settings(self, run: Run) -> dict[str, Any]:
        return settings_of(self, self.runner.data, run)

    def _leave(self) -> None:
        super()._leave()
        self.runner.samples = None
