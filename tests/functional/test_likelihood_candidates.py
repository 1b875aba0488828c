from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_probes.functional.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from lightning_probes.functional.likelihood_candidates import Clues, candidates, training_losses

LOGITS = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0))  # samples, classes, positions
LABELS = torch.randint(0, 5, (6, 7), generator=torch.Generator().manual_seed(1))
BITS, REALS = (LOGITS.roll(1, 0) > 0).float(), LOGITS.roll(1, 0)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0])
CLUES = Clues(weights=(WEIGHTS[:3], WEIGHTS, torch.tensor([4.0])), smoothings=(0.07,))
CLASSES = Categorical(class_dim=1, ignore_index=2)


def cross_entropy(**arguments: object) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, targets: F.cross_entropy(logits, targets, ignore_index=2, **arguments)  # type: ignore[arg-type]


def mean_of_means(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack(
        [cross_entropy()(row[None], labels[None]) for row, labels in zip(logits, targets, strict=True)]
    ).mean()


LOSSES: dict[str, tuple[Likelihood, Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "mean": (CLASSES, cross_entropy(), LABELS),
    "sum": (CLASSES, cross_entropy(reduction="sum"), LABELS),
    "sum over each sample": (CLASSES, lambda x, y: cross_entropy(reduction="sum")(x, y) / 6, LABELS),
    "mean over ignored positions too": (CLASSES, lambda x, y: cross_entropy(reduction="none")(x, y).mean(), LABELS),
    "mean of samples' means": (CLASSES, mean_of_means, LABELS),
    "class weights": (CLASSES, cross_entropy(weight=WEIGHTS), LABELS),
    "label smoothing": (CLASSES, cross_entropy(label_smoothing=0.07), LABELS),
    "weights and smoothing": (CLASSES, cross_entropy(weight=WEIGHTS, label_smoothing=0.07), LABELS),
    "yes and no": (Bernoulli(), F.binary_cross_entropy_with_logits, BITS),
    "rare yes": (
        Bernoulli(),
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor([4.0])),
        BITS,
    ),
    "half squared error": (Gaussian(), lambda x, y: F.mse_loss(x, y) / 2, REALS),
    "squared error": (Gaussian(), F.mse_loss, REALS),
    "summed squared error": (Gaussian(), lambda x, y: F.mse_loss(x, y, reduction="sum") / 6, REALS),
}


def agrees(reading: Likelihood, loss: Tensor, targets: Tensor, clues: Clues | None = CLUES) -> bool:
    losses = training_losses(reading, LOGITS, targets, clues)
    return bool(torch.isclose(losses, loss.double(), rtol=1e-5).any())


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_training_agrees_with_its_own_reading(name: str) -> None:
    reading, loss, targets = LOSSES[name]
    assert agrees(reading, loss(LOGITS, targets), targets)


@pytest.mark.parametrize("name", [name for name, (reading, _, _) in LOSSES.items() if reading == CLASSES])
@pytest.mark.parametrize("index", [-100, 0, 1, 3, 4])
def test_loss_disagrees_with_readings_that_ignore_another_label(name: str, index: int) -> None:
    loss = LOSSES[name][1](LOGITS, LABELS)
    assert not agrees(Categorical(1, index), loss, LABELS)


def test_loss_agrees_only_with_its_own_class_dim_if_two_dims_fit() -> None:
    logits, labels = LOGITS[:, :, :5], LABELS[:, :5]
    found = candidates("auto", logits, labels)
    assert {reading.class_dim for reading in found if isinstance(reading, Categorical)} == {-1, 1}
    loss = F.cross_entropy(logits, labels)
    agreeing = [r for r in found if torch.isclose(training_losses(r, logits, labels), loss.double(), rtol=1e-5).any()]
    assert agreeing == [Categorical(1)]


def test_labels_that_may_not_count_are_those_that_stand_out_and_those_the_model_names() -> None:
    logits, labels = torch.zeros(6, 10), torch.tensor([3, 7, 5, 5, 6, 4])
    net = nn.Sequential(nn.Embedding(10, 2, padding_idx=6), nn.Embedding(10, 2, padding_idx=1))
    net.add_module("loss", nn.CrossEntropyLoss(ignore_index=9))
    found = candidates("auto", logits, labels, Clues.of(net))
    assert found == [Categorical(-1, index) for index in (-100, 9, 6, 3, 7, 5)]  # 1 is named, and does not occur


@pytest.mark.parametrize("label", [-100, -1, 10, 255])
def test_the_label_that_is_no_class_is_the_one_that_does_not_count(label: int) -> None:
    found = candidates("auto", torch.zeros(3, 10), torch.tensor([4, label, 7]))
    assert found == [Categorical(-1, label)]


def test_several_labels_that_are_no_classes_are_refused_with_the_argument_to_set() -> None:
    with pytest.raises(ValueError, match=r"labels -1, 255, .* 10 classes: set predict_fn="):
        candidates("auto", torch.zeros(3, 10), torch.tensor([4, -1, 255]))


def test_clues_are_found_on_modules_and_in_their_attributes() -> None:
    net = nn.Module()
    net.loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]), ignore_index=3, label_smoothing=0.25)
    net.balance, net.pad_id = torch.tensor([5.0, 6.0]), 8
    clues = Clues.of(net)
    assert (3 in clues.ignored, clues.padding, 0.25 in clues.smoothings) == (True, (8,), True)
    assert sorted(weight.tolist() for weight in clues.weights) == [[1.0, 2.0], [5.0, 6.0]]
