"""What the user's code raises while a probe runs it, and which batches it skips."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes import EveryNSteps, FisherTrace, InitInterpolation, Probe, Sharpness
from lightning_probes.probing.user_code import UserCodeError, brief, user_code
from lightning_probes.results import Scalar
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.tester import BY_LOGITS, PROBES, fit, probe

# -- errors ------------------------------------------------------------------------------------------------------------


class FailsLater(Supervised):
    """Works until an optimizer step has been taken."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        super().__init__(mlp())
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if self.trainer.global_step > 2 and not self.training:
            raise self.error()
        return self.net(x)


def failing(name: str, error: Callable[[], BaseException], **arguments: Any) -> Probe:
    measured = probe(name, schedule=EveryNSteps(1), **arguments)
    fit(lambda: Fit(FailsLater(error), loader(labelled(4))), [measured])
    return measured


@pytest.mark.parametrize(
    "error", [lambda: KeyError("baseline"), lambda: ValueError("no\nluck"), lambda: IndexError(), lambda: OSError("x")]
)
@pytest.mark.parametrize("name", PROBES)
def test_error_in_a_later_event_names_probe_step_and_arguments(name: str, error: Callable[[], Exception]) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        failing(name, error)
    message = str(caught.value)
    argument = "predict_fn=" if name in BY_LOGITS else "loss_fn="
    words = (f"{PROBES[name].__name__}: ", "at step 3", type(error()).__name__, argument, "data=", "on_error='warn'")
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert type(caught.value.__cause__) is type(error())


def test_with_a_warning_instead_training_goes_on() -> None:
    with pytest.warns(UserWarning, match=r"failed and was left out: .*at step 3"):
        measured = failing("sharpness", lambda: KeyError("baseline"), on_error="warn")
    assert [entry["step"] for entry in measured.history] == [0, 1, 2]


@pytest.mark.parametrize("error", [Exception(), KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_stops_interruptions_and_memory_errors_pass_unchanged(error: BaseException) -> None:
    """How a W&B agent stops a trial, an interruption, lack of memory."""
    with pytest.raises(BaseException) as caught, user_code("loss_fn"):  # noqa: PT011
        raise error
    assert caught.value is error


def test_bare_exception_of_an_agent_ends_the_fit_as_it_is() -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        failing("sharpness", lambda: Exception(), on_error="warn")
    assert type(caught.value) is Exception


def test_nested_contexts_wrap_an_error_of_the_user_once() -> None:
    with pytest.raises(UserCodeError, match=r"^KeyError: 'x'$"), user_code("loss_fn"), user_code("predict_fn"):
        raise KeyError("x")


# -- what changes after the dry run ------------------------------------------------------------------------------------


class FreezesFirst(Supervised):
    """Trains its head alone from the third step on."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.freeze()
        return super().training_step(batch, batch_idx)

    def freeze(self) -> None:
        for parameter in self.net[0].parameters() if self.trainer.global_step > 2 else ():
            parameter.requires_grad_(False)


class FreezesAfterwards(FreezesFirst):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = Supervised.training_step(self, batch, batch_idx)
        self.freeze()
        return loss


def of_the_head(module: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(module.net[1:](module.net[0](batch[0]).detach()), batch[1])


@pytest.mark.parametrize(("kind", "loss_fn"), [(FreezesFirst, of_the_head), (FreezesAfterwards, None)])
def test_layers_that_a_step_freezes_have_the_gradients_of_training(kind: Any, loss_fn: Any) -> None:
    def entry(module: Callable[[nn.Module], Supervised], **arguments: Any) -> dict[str, float]:
        sharp = Sharpness(num_samples=24, micro_batch_size=8, schedule=EveryNSteps(3), **arguments)
        fit(lambda: Fit(module(mlp()), loader(labelled(4))), [sharp], max_steps=4)
        return {key: sharp.history[1][key] for key in ("sharpness/lambda_max", "sharpness/sam", "sharpness/loss")}

    assert entry(kind) == pytest.approx(entry(Supervised, loss_fn=loss_fn), rel=1e-4)


class NoLuck(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lucky: bool) -> Tensor:
        ctx.lucky = lucky
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if not ctx.lucky:
            raise ValueError("no luck")
        return grad.clone(), None


class BreaksBackwards(Supervised):
    def forward(self, x: Tensor) -> Tensor:
        return NoLuck.apply(self.net(x), self.training or self.trainer.global_step < 3)


class TakesOneDerivative(Supervised):
    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if self.training or self.trainer.global_step < 3:
            return logits
        return torch.segment_reduce(logits, "sum", lengths=torch.ones(len(x), dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("fisher", BreaksBackwards, "ValueError: no luck"),
        ("sharpness", BreaksBackwards, "ValueError: no luck"),
        ("sharpness", TakesOneDerivative, "not implemented"),
    ],
)
def test_derivative_that_fails_in_a_later_event_is_said_with_step_and_arguments(
    name: str, kind: Any, words: str
) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        fit(lambda: Fit(kind(mlp()), loader(labelled(4))), [probe(name, schedule=EveryNSteps(1))])
    message = str(caught.value)
    assert message.startswith(f"{PROBES[name].__name__}: a derivative at step 3 can't be computed (")
    assert [part for part in (words, "loss_fn=", "predict_fn=", "on_error='warn'") if part not in message] == []


class PenalisedLater(Supervised):
    """Begins to differentiate by its inputs after a warm-up."""

    always = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if not self.always and self.trainer.global_step < 3:
            return loss
        inputs = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(inputs).sum(), [inputs], create_graph=True)
        return loss + (self.trainer.global_step >= 3) * slope.square().mean()


class PenalisedThroughout(PenalisedLater):
    always = True


@pytest.mark.parametrize("name", ["interpolation", "sharpness"])
def test_penalty_that_begins_after_a_warm_up_is_part_of_the_loss_from_there_on(name: str) -> None:
    def history(kind: Any) -> list[dict[str, float]]:
        measured = probe(name, schedule=EveryNSteps(2))
        fit(lambda: Fit(kind(mlp()), loader(labelled(4))), [measured])
        return [{key: v for key, v in entry.items() if "seconds" not in key} for entry in measured.history]

    later, throughout = history(PenalisedLater), history(PenalisedThroughout)
    assert len(later) > 2
    for one, other in zip(later, throughout, strict=True):
        one.pop("probes/overhead"), other.pop("probes/overhead")
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)


# -- long contents -----------------------------------------------------------------------------------------------------


def test_content_is_one_line_of_at_most_300_characters() -> None:
    assert brief("word\n" * 1000).startswith("word word word")
    assert len(brief("word\n" * 1000)) == 300
    assert brief(torch.zeros(100, 100)).startswith("tensor(")


class Verbose(Supervised):
    def loss_of(self, batch: Any) -> Tensor:
        if not self.training:
            raise ValueError("row\n" * 10_000)
        return super().loss_of(batch)


class VerboseForward(Supervised):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            raise LookupError("row\n" * 10_000)
        return self.net(x)


@pytest.mark.parametrize("kind", [Verbose, VerboseForward])
@pytest.mark.parametrize("name", PROBES)
def test_sentence_about_a_long_error_is_short(name: str, kind: Any) -> None:
    if kind is Verbose and name in BY_LOGITS:
        return
    with pytest.raises(MisconfigurationException) as caught:
        fit(lambda: Fit(kind(mlp()), loader(labelled(4))), [probe(name)])
    assert "row row" in str(caught.value)
    assert len(str(caught.value)) < 800


# -- skipped batches ---------------------------------------------------------------------------------------------------


class SkipsOdd(Supervised):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class SkipsBackground(Supervised):
    """Has nothing to learn from batches that begin with a label of 0; the first micro-batch is one of them."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return super().training_step(batch, batch_idx) if batch[1][0] > 0 else None


def by_hand(module: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [SkipsOdd, SkipsBackground])
@pytest.mark.parametrize("name", ["sharpness", "interpolation"])
def test_batches_that_training_skips_are_left_out(name: str, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    inputs, targets = labelled(4).tensors
    chunks = [slice(start, start + 8) for start in range(0, 40, 8)]
    wanted = [
        chunk for place, chunk in enumerate(chunks) if (place % 2 == 0 if kind is SkipsOdd else targets[chunk][0] > 0)
    ]
    assert 1 < len(wanted) < 5
    batches = [(inputs[chunk], targets[chunk]) for chunk in chunks]
    module = kind(mlp())
    arguments = {"num_samples": 40, "micro_batch_size": None}

    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        found = probe(name, **arguments).evaluate(module, batches, init_state=module.state_dict())
    only = [(inputs[chunk], targets[chunk]) for chunk in wanted]
    expected = probe(name, **arguments, loss_fn=by_hand).evaluate(module, only, init_state=module.state_dict())

    assert f"training_step returned None for {5 - len(wanted)} of 5 micro-batches" in caplog.text
    numbers = {key: result.value for key, result in expected.items() if isinstance(result, Scalar)}
    assert {key: found[key].value for key in numbers} == pytest.approx(numbers, rel=1e-4)  # type: ignore[union-attr]
    assert not found[f"{name}/flag/nonfinite"].raised  # type: ignore[union-attr]


def test_fit_that_skips_batches_measures_the_others_under_anomaly_detection() -> None:
    sharp = Sharpness(num_samples=24, micro_batch_size=8, schedule=EveryNSteps(1))
    fit(lambda: Fit(SkipsOdd(mlp()), loader(labelled(4))), [sharp], detect_anomaly=True)
    assert len(sharp.history) > 1
    assert not any(entry["sharpness/flag/nonfinite"] for entry in sharp.history)


class AlmostSingular(Supervised):
    """Finite, but for parameters a little off."""

    def __init__(self) -> None:
        super().__init__(mlp(), lr=1e-6)
        self.scale = nn.Parameter(torch.full((3,), 1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale.sqrt()


@pytest.mark.parametrize("kind", [FisherTrace, Sharpness, InitInterpolation])
def test_anomaly_detection_is_for_training_alone(kind: type[Probe]) -> None:
    def history(**arguments: Any) -> list[dict[str, float]]:
        measured = kind(num_samples=24, micro_batch_size=8, schedule=EveryNSteps(1))
        fit(lambda: Fit(AlmostSingular(), loader(labelled(4))), [measured], **arguments)
        return [{k: v for k, v in entry.items() if k not in TIMES} for entry in measured.history]

    assert history(detect_anomaly=True) == history()
    assert not torch.is_anomaly_enabled()


TIMES = {"probes/overhead", "fisher/seconds", "sharpness/seconds", "interpolation/seconds"}
