from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_probes import EveryNSteps, FisherTrace, InitInterpolation, Result
from tests.callbacks.models import Supervised, loader, trainer

PAD = 3


def sequences(pad: int = PAD) -> tuple[Tensor, Tensor]:
    """Tokens of 11 kinds, the ends of most sequences padded."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, 11, (24, 9), generator=generator) for _ in range(2))
    x[x == pad] = y[y == pad] = (pad + 1) % 11
    for sample in range(24):
        x[sample, 2 + sample % 7 :] = y[sample, 2 + sample % 7 :] = pad
    return x, y


def tagger(loss: Callable[[Tensor, Tensor], Tensor], zero_head: bool = False) -> Supervised:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(11, 6), nn.Tanh(), nn.Linear(6, 11))
    if zero_head:
        nn.init.zeros_(net[2].weight)
        nn.init.zeros_(net[2].bias)
    return Supervised(net, loss)


def padded(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)


def segmenter(classes: int, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> Supervised:
    torch.manual_seed(0)
    return Supervised(nn.Conv1d(2, classes, 1), loss)


def found(module: Supervised, *tensors: Tensor, **arguments: Any) -> dict[str, Result]:
    return FisherTrace(labels="empirical", num_samples=24, micro_batch_size=24, **arguments).evaluate(
        module, loader(*tensors, batch_size=24)
    )


def value(results: dict[str, Result], key: str) -> Any:
    return getattr(results[key], "value", None)


@pytest.mark.parametrize("zero_head", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.037])
def test_padding_that_the_loss_leaves_out_does_not_count(zero_head: bool, smoothing: float) -> None:
    x, y = sequences()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.mT, targets, ignore_index=PAD, label_smoothing=smoothing)

    module = tagger(loss, zero_head)
    results = found(module, x, y)
    assert value(results, "fisher/loss") == pytest.approx(float(padded(module(x), y).detach()), rel=1e-5)
    told = found(module, x, y, predict_fn=lambda model, batch: (model(batch[0]), batch[1].where(batch[1] != PAD, -100)))
    assert value(results, "fisher/empirical_trace") == pytest.approx(value(told, "fisher/empirical_trace"), rel=1e-6)


def test_padding_that_the_loss_counts_counts() -> None:
    x, y = sequences()
    module = tagger(lambda logits, targets: F.cross_entropy(logits.mT, targets))
    loss = float(F.cross_entropy(module(x).mT, y).detach())
    assert value(found(module, x, y), "fisher/loss") == pytest.approx(loss, rel=1e-5)


def test_accuracy_is_that_of_the_positions_the_loss_counts() -> None:
    x, y = sequences()
    module = tagger(padded)
    curve = InitInterpolation(num_alphas=2, data="train", micro_batch_size=24).evaluate(
        module, loader(x, y), init_state={name: torch.zeros_like(p) for name, p in module.state_dict().items()}
    )["interpolation/accuracy"]
    right = (module(x).argmax(-1) == y)[y != PAD].float().mean()
    assert curve.y[-1] == pytest.approx(float(right), abs=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("void", [255, 200])
def test_masks_of_bytes_with_a_void_label_are_read_as_they_are_trained_on(void: int) -> None:
    x = torch.randn(24, 2, 5, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 4, (24, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    y[:, 0] = void
    module = segmenter(4, lambda logits, targets: F.cross_entropy(logits, targets.long(), ignore_index=void))
    assert value(found(module, x, y), "fisher/loss") == pytest.approx(
        float(module.loss(module(x), y).detach()), rel=1e-5
    )


@pytest.mark.parametrize("first", [True, False])
def test_the_dim_of_the_classes_is_that_of_the_loss_where_two_fit(first: bool) -> None:
    x = torch.randn(24, 2, 5, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 5, (24, 5), generator=torch.Generator().manual_seed(1))
    module = segmenter(5, lambda logits, targets: F.cross_entropy(logits if first else logits.mT, targets))
    assert value(found(module, x, y), "fisher/loss") == pytest.approx(
        float(module.loss(module(x), y).detach()), rel=1e-5
    )


def test_a_loss_that_no_reading_agrees_with_is_said_with_both_numbers_and_changes_nothing() -> None:
    x, y = sequences()
    module = tagger(lambda logits, targets: padded(logits, targets) + 0.3 * logits.square().mean())
    loss, plain = float(module.loss(module(x), y).detach()), float(F.cross_entropy(module(x).mT, y).detach())
    with pytest.warns(UserWarning, match=rf"{loss:.5g}, .*{plain:.5g}\..*predict_fn=.*likelihood="):
        assert value(found(module, x, y), "fisher/loss") == pytest.approx(plain, rel=1e-5)


class Thaws(Supervised):
    """Trains a second layer from the third step on."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.net[0].requires_grad_(self.trainer.global_step > 1)


def test_a_loss_that_no_reading_agrees_with_is_said_once_though_layers_are_thawed(
    recwarn: pytest.WarningsRecorder,
) -> None:
    torch.manual_seed(0)
    module = Thaws(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), F.l1_loss)
    module.net[0].requires_grad_(False)
    probe = FisherTrace(likelihood="gaussian", schedule=EveryNSteps(1))
    trainer(max_steps=5, callbacks=[probe]).fit(module, loader(REALS, BITS))
    assert len(probe.history) > 3
    assert len([warning for warning in recwarn if "makes them equal" in str(warning.message)]) == 1


REALS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
BITS = (torch.randn(24, 3, generator=torch.Generator().manual_seed(1)) > 1).float()
QUIET: dict[str, tuple[Any, Tensor, str]] = {
    "squared error": (F.mse_loss, BITS, "gaussian"),
    "half squared error": (lambda x, y: F.mse_loss(x, y) / 2, BITS, "gaussian"),
    "summed squared error": (lambda x, y: F.mse_loss(x, y, reduction="sum"), BITS, "gaussian"),
    "yes and no": (F.binary_cross_entropy_with_logits, BITS, "bernoulli"),
    "rare yes": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 2.0, 5.0])), BITS, "bernoulli"),
    "classes": (F.cross_entropy, BITS.argmax(1), "auto"),
    "weighted classes": (nn.CrossEntropyLoss(weight=torch.tensor([3.0, 2.0, 5.0])), BITS.argmax(1), "auto"),
    "smoothed classes": (nn.CrossEntropyLoss(label_smoothing=0.123), BITS.argmax(1), "auto"),
    "summed classes": (nn.CrossEntropyLoss(reduction="sum"), BITS.argmax(1), "categorical"),
}


@pytest.mark.parametrize("name", QUIET)
def test_a_loss_that_is_the_likelihood_up_to_weights_smoothing_and_sums_is_not_remarked_on(
    name: str, recwarn: pytest.WarningsRecorder
) -> None:
    loss, targets, likelihood = QUIET[name]
    torch.manual_seed(0)
    found(Supervised(nn.Linear(4, 3), loss), REALS, targets, likelihood=likelihood)
    assert [warning for warning in recwarn if "the loss of training" in str(warning.message)] == []


@pytest.mark.parametrize("trained", [True, False])
def test_probabilities_named_bernoulli_are_refused(trained: bool) -> None:
    torch.manual_seed(0)
    model = Supervised(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), F.binary_cross_entropy)
    model.automatic_optimization = trained
    with pytest.raises(ValueError, match=r"FisherTrace: .*probabilities.*predict_fn="):
        found(model, REALS, BITS, likelihood="bernoulli")


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("size", [0.0, 1e-3])
def test_logits_that_happen_to_lie_between_zero_and_one_are_not(trained: bool, size: float) -> None:
    torch.manual_seed(0)
    model = Supervised(nn.Linear(4, 3), F.binary_cross_entropy_with_logits)
    with torch.no_grad():
        model.net.weight.mul_(size)
        model.net.bias.fill_(300 * size)
    model.automatic_optimization = trained
    logits = model(REALS)
    assert ((logits >= 0) & (logits <= 1)).all()
    loss = float(F.binary_cross_entropy_with_logits(logits, BITS))
    assert value(found(model, REALS, BITS, likelihood="bernoulli"), "fisher/loss") == pytest.approx(loss, rel=1e-5)


def test_a_training_step_that_fails_in_a_replay_leaves_the_usual_reading() -> None:
    x, y = sequences()

    def raises(logits: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError

    module = tagger(raises)
    loss = float(F.cross_entropy(module(x).mT, y).detach())
    assert value(found(module, x, y), "fisher/loss") == pytest.approx(loss, rel=1e-5)


def test_a_loss_that_is_given_is_compared_in_place_of_training_step() -> None:
    x, y = sequences()
    module = tagger(lambda logits, targets: F.cross_entropy(logits.mT, targets))
    results = found(module, x, y, loss_fn=lambda model, batch: padded(model(batch[0]), batch[1]))
    assert value(results, "fisher/loss") == pytest.approx(float(padded(module(x), y).detach()), rel=1e-5)


class WithTeacher(Supervised):
    """Moves a teacher along in each step."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 3))
        self.teacher = nn.Linear(4, 3).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.teacher.weight.data.lerp_(self.net.weight.data, 0.1)
        return super().training_step(batch, batch_idx)


def test_a_training_step_that_writes_to_a_parameter_is_no_matter_to_a_probe_of_the_likelihood() -> None:
    def end(*probes: FisherTrace) -> Tensor:
        torch.manual_seed(0)
        module = WithTeacher()
        trainer(max_epochs=1, callbacks=[*probes]).fit(module, loader(REALS, BITS.argmax(1)))
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    probe = FisherTrace()
    assert torch.equal(end(probe), end())
    assert probe.history
