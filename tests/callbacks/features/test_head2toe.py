"""Head2Toe against features taken by hand, and where it is known which layers hold the label."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes import Head2Toe
from tests.callbacks.models import Supervised, loader, trainer


def blind(classes: int = 3) -> nn.Sequential:
    """The average over positions hides where the largest value is."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, classes)
    )


def places(samples: int = 400) -> tuple[Tensor, Tensor]:
    """Noise with a bump, and in which third it is."""
    draws = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(samples, 1, 12, generator=draws)
    third = torch.randint(3, (samples,), generator=draws)
    x[torch.arange(samples), 0, 4 * third + 1] += 3
    return x, third


def test_gap_is_large_where_the_last_layer_is_blind_and_relevance_is_before_it() -> None:
    results = Head2Toe().evaluate(Supervised(blind()), loader(*places()))

    gap, relevance = results["head2toe/gap"], results["head2toe/relevance"].y
    assert gap.value > 0.3
    assert gap.value > 5 * gap.standard_error
    assert results["head2toe/accuracy"].value > 0.95
    assert relevance.sum() == pytest.approx(1)
    assert relevance[:2].sum() > 0.9
    assert not results["head2toe/flag/not_converged"].raised
    assert not results["head2toe/flag/nonfinite"].raised


def test_gap_is_zero_if_the_last_layer_is_the_only_one() -> None:
    """A network of one layer: all features are its logits, and its input is a rotation of them."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(3, 3)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)

    results = Head2Toe(fraction=1.0).evaluate(Supervised(nn.Sequential(layer)), loader(x, x.argmax(1)))

    assert results["head2toe/gap"].value == 0
    assert results["head2toe/kept"].value == 1
    assert results["head2toe/relevance"].y.tolist() == pytest.approx([1])


def test_a_layer_that_is_a_hundred_times_larger_changes_nothing() -> None:
    small, large = blind(), blind()
    nn.init.zeros_(small[4].bias)
    nn.init.zeros_(large[4].bias)
    with torch.no_grad():
        large[0].weight *= 100
        large[0].bias *= 100

    ones, hundreds = (Head2Toe().evaluate(Supervised(module), loader(*places())) for module in (small, large))

    assert ones["head2toe/kept"].value == hundreds["head2toe/kept"].value
    assert hundreds["head2toe/relevance"].y == pytest.approx(ones["head2toe/relevance"].y, abs=0.01)


def test_it_measures_at_the_end_of_a_fit_on_validation_data() -> None:
    x, third = places()
    probe = Head2Toe(num_samples=200)
    trainer(max_steps=3, callbacks=[probe], num_sanity_val_steps=0).fit(
        Validated(blind()), loader(x[:200], third[:200]), loader(x[200:], third[200:])
    )

    assert [entry["step"] for entry in probe.history] == [3]
    assert probe.history[-1]["head2toe/gap"] > 0.2


class Validated(Supervised):
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])


def test_few_samples_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="at least 12 samples, and has 10"):
        Head2Toe().evaluate(Supervised(blind()), loader(*places(10)))


def test_values_are_refused() -> None:
    x, third = places(40)
    with pytest.raises(MisconfigurationException, match="selected for classes"):
        Head2Toe().evaluate(Supervised(blind()), loader(x, third / 7 + 0.1))
