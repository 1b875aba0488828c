"""What the penalty refuses before training time is spent, and what it warns of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_probes import FisherPenalty
from lightning_probes.testing.zoo import CASES, Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised
from tests.callbacks.interventions.written import C, made
from tests.tester import fit


class Lines(Supervised):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Words(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(50, 3, sparse=True), nn.Linear(12, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.words(inputs.abs().long()).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(tensor)
        return tensor**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (tensor,) = ctx.saved_tensors
        return 3 * tensor**2 * gradient


class Cubed(Supervised):
    def forward(self, inputs: Any) -> Any:
        return Cube.apply(self.net(inputs))


class Held(Supervised):
    """A part of the outputs is held constant."""

    def forward(self, inputs: Any) -> Any:
        outputs = self.net(inputs)
        return outputs * outputs.detach()


@pytest.mark.parametrize("kind", [Held, Cubed])
def test_a_network_that_autograd_does_not_differentiate_twice_is_reported(kind: Any) -> None:
    with pytest.warns(UserWarning, match="autograd misses second derivatives of the log-likelihood: .* by [0-9.]+%"):
        fit(lambda: made(kind), [FisherPenalty(C)], max_steps=1)


class AllCheckpointed(Supervised):
    def forward(self, inputs: Any) -> Any:
        return checkpoint(self.net, inputs.requires_grad_(), use_reentrant=True)


class Checkpointed(Supervised):
    def forward(self, inputs: Any) -> Any:
        return checkpoint(self.net[1:], self.net[0](inputs), use_reentrant=True)


REFUSED: dict[str, tuple[Callable[[], Fit], dict[str, Any], dict[str, Any], str]] = {
    "LBFGS": (lambda: made(Lines), {}, {}, "LBFGS searches along a line by the loss, which lacks the penalty"),
    "sparse": (lambda: Fit(Words(), loader(labelled(4))), {}, {}, "is sparse, .* build its layer with sparse=False"),
    "no parameter seen": (lambda: made(AllCheckpointed), {}, {}, "it does not depend on the trainable parameters"),
    "reentrant": (lambda: made(Checkpointed), {}, {}, "reentrant activation checkpointing, .* use_reentrant=False"),
    "a share of an endless fit": (
        made, {"until": 0.5}, {"max_epochs": -1, "max_time": {"seconds": 20}}, "until=0.5 is a share of a fit whose",
    ),
    "no likelihood": (CASES["gan"].make, {}, {}, "predict_fn="),
    "no classes": (CASES["regression"].make, {}, {}, 'likelihood="categorical", "bernoulli" or "gaussian"'),
    "half": (made, {}, {"precision": "16-true"}, "precision='16-true' is too coarse for the square of a gradient"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_the_first_step(case: str) -> None:
    make, arguments, how, sentence = REFUSED[case]
    trained: list[int] = []

    class Counts(L.Callback):
        def on_before_backward(self, *_: Any) -> None:
            trained.append(1)

    with pytest.raises(MisconfigurationException, match=f"FisherPenalty: .*{sentence}"):
        fit(make, [FisherPenalty(C, **arguments), Counts()], **how)
    assert not trained


def test_a_missing_coefficient_ends_in_a_sentence_with_its_scale() -> None:
    with pytest.raises(ValueError, match=r"coefficient must be .* no default .* the peak of .* choose 0.1 to 1 for it"):
        FisherPenalty()
