"""Bad input ends in one clear sentence that names the argument, before the first optimizer step is paid for."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_probes import AtFitEnd, EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness
from lightning_probes.testing.zoo import CASES, Fit
from lightning_probes.testing.zoo.data import labelled, loader, normal
from lightning_probes.testing.zoo.modules import OnMapping, Supervised, mlp
from tests.tester import PROBES, fit, probe

Make = Callable[[], Fit]


def classification(net: nn.Module | None = None, **arguments: Any) -> Fit:
    return Fit(Supervised(mlp() if net is None else net, **arguments), loader(labelled(4)))


def refused(make: Make, callbacks: list[Any], *words: str) -> None:
    """`fit` ends in one error that has all the words, with no optimizer step taken."""
    trainers: list[L.Trainer] = []

    class Witness(L.Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            trainers.append(trainer)

    with pytest.raises((MisconfigurationException, ValueError)) as caught:
        fit(make, [Witness(), *callbacks])
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert [trainer.global_step for trainer in trainers] == [0]


# -- arguments that can't be right whatever the run --------------------------------------------------------------------


def test_fewer_than_two_alphas() -> None:
    with pytest.raises(ValueError, match="num_alphas must be a whole number of at least 2"):
        InitInterpolation(num_alphas=1)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Sharpness(num_samples=0), "num_samples"),
        (lambda: Sharpness(micro_batch_size=0), "micro_batch_size"),
        (lambda: Sharpness(on_flag="shout"), "on_flag"),  # type: ignore[arg-type]
        (lambda: Sharpness(on_error="ignore"), "on_error"),  # type: ignore[arg-type]
        (lambda: Sharpness(name=""), "name"),
        (lambda: Sharpness(seed=-1), "seed"),
        (lambda: Sharpness(quantities=("lambda_min",)), "quantities"),  # type: ignore[arg-type]
        (lambda: Sharpness(rho=0.0), "rho"),
        (lambda: FisherTrace(labels="true"), "labels"),  # type: ignore[arg-type]
        (lambda: InitInterpolation(batch_norm="train"), "batch_norm"),  # type: ignore[arg-type]
        (lambda: InitInterpolation(tolerance=-1.0), "tolerance"),
        (lambda: LayerCKA(tokens="first"), "tokens"),  # type: ignore[arg-type]
        (lambda: EveryNSteps(0), "n must be"),
    ],
)  # fmt: skip
def test_argument_out_of_range_is_refused_at_construction(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(ValueError, match=argument):
        make()


# -- what takes the run to see -----------------------------------------------------------------------------------------


class NoLogits(nn.Module):
    """Returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers(x), x


class WithPair(Supervised):
    def loss_of(self, batch: Any) -> Tensor:
        return self.loss(self(batch[0])[0], batch[1])


class Forgetful(Supervised):
    """Its loss depends on how often it was computed, in a place that no copy reaches."""

    def loss_of(self, batch: Any) -> Tensor:
        return super().loss_of(batch) * (1 + next(CALLS))


CALLS = itertools.count()


class HiddenParameters(Supervised):
    """Keeps layers in a plain list."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.layers = [nn.Linear(4, 4)]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.layers[0](x))


class NothingToTrain(Supervised):
    def __init__(self) -> None:
        super().__init__(mlp())
        self.requires_grad_(False)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.loss_of(batch)

    def configure_optimizers(self) -> None:
        return None


class ByHand(Supervised):
    def __init__(self) -> None:
        super().__init__(mlp())
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss_of(batch))
        optimizer.step()


class TwoArguments(Supervised):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        return self.net(x) * lengths[:, None]

    def loss_of(self, batch: Any) -> Tensor:
        return self.loss(self(batch[0], torch.ones(len(batch[0]))), batch[1])


class NoForward(Supervised):
    forward = nn.Module.forward

    def loss_of(self, batch: Any) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])


class InputsOnly(Supervised):
    def loss_of(self, batch: Any) -> Tensor:
        return self(batch).square().mean()


class Misspelt(Supervised):
    def loss_of(self, batch: Any) -> Tensor:
        return self.los(self(batch[0]), batch[1])


def probabilities() -> Fit:
    return classification(nn.Sequential(mlp(), nn.Softmax(1)), loss=lambda p, y: F.nll_loss(p.log(), y))


def real_targets() -> Fit:
    return Fit(Supervised(mlp(4, 1), F.mse_loss), loader(TensorDataset(normal(40, 4), normal(40, 1))))


def unnamed_mapping() -> Fit:
    return Fit(OnMapping(mlp()), CASES["dict_of_other_names"].make().train)


def bare_inputs() -> Fit:
    return Fit(InputsOnly(mlp()), loader(normal(40, 4)))


@dataclass(frozen=True)
class Refusal:
    """A run that must be refused, the probes that refuse it, and the words that the sentence must have."""

    make: Make
    probes: tuple[str, ...]
    words: tuple[str, ...]


FISHER, LOSS = ("fisher",), ("interpolation", "sharpness")
REFUSALS = {
    "inputs and targets of a mapping": Refusal(unnamed_mapping, FISHER, ("distinguished", "predict_fn", "target")),
    "inputs without targets": Refusal(bare_inputs, FISHER, ("can't be distinguished", "Tensor", "predict_fn")),
    "a forward of two arguments": Refusal(
        lambda: Fit(TwoArguments(mlp()), loader(labelled(4))), FISHER, ("first part of", "lengths", "predict_fn")
    ),
    "no forward": Refusal(
        lambda: Fit(NoForward(mlp()), loader(labelled(4))), FISHER, ("first part of the batch", "predict_fn")
    ),
    "an output that is no tensor": Refusal(
        lambda: Fit(WithPair(NoLogits()), loader(labelled(4))), FISHER, ("tuple", ".logits", "predict_fn")
    ),
    "probabilities": Refusal(probabilities, FISHER, ("probabilities", "logits", "predict_fn")),
    "a likelihood that can't be guessed": Refusal(real_targets, FISHER, ("likelihood=", "gaussian")),
    "manual optimisation": Refusal(lambda: Fit(ByHand(), loader(labelled(4))), LOSS, ("uses manual", "loss_fn")),
    "a loss that differs between passes": Refusal(
        lambda: Fit(Forgetful(mlp()), loader(labelled(4))), LOSS, ("differs between two identical passes", "loss_fn")
    ),
    "a bug in training_step": Refusal(
        lambda: Fit(Misspelt(mlp()), loader(labelled(4))), LOSS,
        ("'Misspelt' object has no attribute 'los'", "if training works without this probe", "loss_fn=", "data="),
    ),
    "no trainable parameters": Refusal(
        lambda: Fit(NothingToTrain(), loader(labelled(4))), tuple(PROBES), ("no trainable parameters", "requires_grad")
    ),
    "parameters in a plain list": Refusal(
        lambda: Fit(HiddenParameters(), loader(labelled(4))), tuple(PROBES), ("layers", "nn.ModuleList")
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "name"), [(what, name) for what, refusal in REFUSALS.items() for name in refusal.probes]
)
def test_run_is_refused_before_the_first_step(what: str, name: str) -> None:
    refused(REFUSALS[what].make, [probe(name)], type(probe(name)).__name__, *REFUSALS[what].words)


def test_fewer_than_four_samples_in_a_micro_batch() -> None:
    refused(classification, [probe("cka", micro_batch_size=3)], "LayerCKA", "at least 4 samples", "micro_batch_size")


def test_one_layer_may_be_named_without_a_list() -> None:
    measured = probe("cka", layers="net.*")
    fit(classification, [measured])
    assert measured.results["cka/layers"].row_labels == ("net.0", "net.1", "net.2")  # type: ignore[union-attr]


def test_layer_that_never_runs_lists_close_names() -> None:
    refused(classification, [probe("cka", layers=["net.9"])], "layers", "'net.9'", "net.0")


def test_batch_norm_needs_two_samples_in_a_micro_batch() -> None:
    refused(CASES["cnn"].make, [probe("interpolation", micro_batch_size=1)], "micro_batch_size", "batch_norm='eval'")


def test_two_probes_of_one_name() -> None:
    refused(classification, [Sharpness(), Sharpness(rho=0.1)], "'sharpness'", "name=")


def test_two_probes_of_one_kind_with_different_names() -> None:
    two = [probe("sharpness", schedule=AtFitEnd(), name=name, quantities=("sam",)) for name in ("one", "two")]

    fit(classification, two)

    assert [set(each.results) for each in two] == [
        {f"{name}/{key}" for key in ("loss", "sam", "flag/nonfinite", "flag/not_converged")} for name in ("one", "two")
    ]


@pytest.mark.parametrize("name", PROBES)
def test_data_that_can_not_be_had_is_an_error_that_names_the_probe(name: str) -> None:
    kind = PROBES[name].__name__
    for data, words in (("val", "no 'val' data"), (object(), "object gives no batches")):
        refused(classification, [probe(name, data=data)], f"{kind}: ", words, "data=")
    with pytest.raises(MisconfigurationException, match=f"^{kind}: int gives no batches"):
        probe(name).evaluate(classification().module, 3)


def test_initialisation_of_another_model() -> None:
    refused(classification, [probe("interpolation", init_state=mlp(5).state_dict())], "init_state")


@pytest.mark.parametrize("name", PROBES)
def test_lazy_module_that_saw_no_batch(name: str) -> None:
    net, who = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)), f"{PROBES[name].__name__}: "
    refused(lambda: classification(net, lr=0.0), [probe(name)], who, "not initialised", "before `fit`")


# -- what is said, and does not stop the run ---------------------------------------------------------------------------


def test_more_samples_than_data_takes_all_of_it_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    measured = probe("sharpness", num_samples=1000, quantities=("sam",), schedule=EveryNSteps(1))

    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fit(classification, [measured])
        fit(classification, [measured], max_epochs=2)

    said = [record.message for record in caplog.records if "1000" in record.message]
    assert len(said) == 1
    assert "train data has 40 samples" in said[0]
    assert len(measured.history) == 10


class TurnsNaN(Supervised):
    """Its weights blow up at the third step, as with a learning rate that is far too large."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            with torch.no_grad():
                self.net[0].weight.fill_(float("nan"))


@pytest.mark.parametrize("name", PROBES)
def test_loss_that_turns_nan_raises_the_flag_and_training_goes_on(name: str) -> None:
    measured = probe(name, schedule=[EveryNSteps(1), AtFitEnd()])

    with pytest.warns(UserWarning, match=f"{name}/flag/nonfinite: not finite: {name}/"):
        run = fit(lambda: Fit(TurnsNaN(mlp()), loader(labelled(4))), [measured])

    assert run.trainer.global_step == 5
    flags = {entry["step"]: entry[f"{name}/flag/nonfinite"] for entry in measured.history}
    assert flags == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
    numbers = [value for entry in measured.history for value in entry.values()]
    assert torch.tensor(numbers).isfinite().all()
    assert not any("lambda_max" in key or "trace" in key or "to_init" in key for key in measured.history[-1])


class ExplodesBetween(Supervised):
    """Finite at both ends of the line, and nowhere between."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 3))
        self.register_buffer("start", self.net.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        moved = (self.net.weight - self.start).norm()
        inside = (moved > 0) & (moved < 0.9)
        return self.net(x) / (~inside).to(x.dtype)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.net.weight.copy_(self.start + 1.0 / self.start.numel() ** 0.5)


def test_point_that_is_not_finite_leaves_monotonic_out() -> None:
    measured = probe("interpolation", schedule=AtFitEnd())

    with pytest.warns(UserWarning, match="interpolation/flag/nonfinite"):
        fit(lambda: Fit(ExplodesBetween(), loader(labelled(4))), [measured])

    losses = measured.results["interpolation/loss"].y  # type: ignore[union-attr]
    assert list(torch.tensor(losses).isfinite()) == [True, False, False, True]
    assert measured.history[-1]["interpolation/flag/nonfinite"] == 1
    assert "interpolation/monotonic" not in measured.results
    assert "interpolation/max_rise" not in measured.history[-1]
    assert measured.history[-1]["interpolation/distance"] > 0


# -- errors inside a probe ---------------------------------------------------------------------------------------------


class Fails(Probe):
    def __init__(self, on_error: Any, at: str) -> None:
        super().__init__(
            name="fails", schedule=EveryNSteps(1), data="train", num_samples=8, micro_batch_size=4, on_error=on_error
        )
        self.at = at

    def prepare(self, view: Any) -> None:
        if self.at == "check":
            raise ValueError("no such luck")

    def measure(self, view: Any) -> Any:
        raise KeyError("no such luck")


@pytest.mark.parametrize("at", ["check", "measure"])
def test_error_in_a_probe_ends_the_fit(at: str) -> None:
    with pytest.raises((ValueError, KeyError), match="no such luck"):
        fit(classification, [Fails("raise", at)])


@pytest.mark.parametrize("at", ["check", "measure"])
def test_error_in_a_probe_is_left_out_and_said_once(at: str) -> None:
    measured, other = Fails("warn", at), probe("sharpness", quantities=("sam",))

    with pytest.warns(UserWarning, match="no such luck") as said:
        run = fit(classification, [measured, other])

    assert run.trainer.global_step == 5
    assert measured.history == []
    assert [entry["step"] for entry in other.history] == [2, 5]
    assert len([warning for warning in said if "no such luck" in str(warning.message)]) == 1


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_strategy_that_shards_the_model_is_refused_at_setup_and_told_which_work(kind: Any) -> None:
    trainer = SimpleNamespace(strategy=object.__new__(kind), callbacks=[])
    with pytest.raises(MisconfigurationException, match=rf"{kind.__name__} shards it: use Trainer\(strategy='ddp'\)"):
        FisherTrace().setup(trainer, None, "fit")
