"""LayerCKA compares the layers of two networks on the same samples, whatever the other network is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, EveryNSteps, Heatmap, LayerCKA, Scalar
from lightning_probes.functional.features.cka import hsic, linear_gram, self_hsic, u_center
from lightning_probes.testing.digests import digest
from lightning_probes.testing.zoo import CASES
from tests.tester import fit

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
DATA = DataLoader(TensorDataset(X, torch.zeros(24, dtype=torch.long)), 12)


def mlp(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


class Convolutions(nn.Module):
    """Another architecture on the same samples, in training mode and with dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.conv, self.drop, self.out = nn.Conv1d(1, 4, 3), nn.Dropout(0.5), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.conv(x[:, None])).flatten(1))  # type: ignore[no-any-return]


def compared(network: nn.Module, **arguments: Any) -> dict[str, Any]:
    found = LayerCKA(num_samples=24, **arguments).evaluate(network, DATA, init_state=network.state_dict())
    return {key.removeprefix("cka/"): each for key, each in found.items()}


def by_hand(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """CKA of one micro-batch."""
    rows, columns = (u_center(torch.stack([*map(linear_gram, layers)])) for layers in (first, second))
    return hsic(rows, columns) / (self_hsic(rows)[:, None] * self_hsic(columns)).sqrt()


def outputs(network: nn.Sequential) -> list[Tensor]:
    found, x = [], X
    with torch.no_grad():
        for layer in network:
            x = layer(x)
            found.append(x)
    return found


def test_each_layer_is_compared_with_each_of_the_other_network() -> None:
    found = compared(mlp(0), other=mlp(1), micro_batch_size=24)
    heatmap = found["to_other"]
    assert isinstance(heatmap, Heatmap)
    assert heatmap.row_labels == heatmap.column_labels == tuple("01234")
    expected = by_hand(outputs(mlp(0)), outputs(mlp(1)))
    assert torch.allclose(torch.tensor(heatmap.values), expected.double(), atol=1e-4)
    assert found["to_other_mean"].value == pytest.approx(float(expected.max(1).values.mean()), abs=1e-4)


def test_with_itself_it_is_the_similarity_of_its_own_layers() -> None:
    found = compared(mlp(0), other=mlp(0))
    assert torch.allclose(torch.tensor(found["to_other"].values), torch.tensor(found["layers"].values), atol=1e-6)
    assert found["to_other_mean"].value == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("form", ["module", "state dict", "file"])
def test_another_run_is_the_same_as_module_state_dict_or_file(form: str, tmp_path: Path) -> None:
    torch.save(mlp(1).state_dict(), tmp_path / "other.pt")
    other = {"module": mlp(1), "state dict": mlp(1).state_dict(), "file": tmp_path / "other.pt"}[form]
    found = compared(mlp(0), other=other)["to_other"].values
    assert torch.allclose(torch.tensor(found), torch.tensor(compared(mlp(0), other=mlp(1))["to_other"].values))


def test_another_architecture_has_its_own_layers_and_stays_as_it_is() -> None:
    other = Convolutions()
    before = digest({**other.state_dict(), "training": other.training, "hooks": len(other.conv._forward_hooks)})
    found = compared(mlp(0), other=other)["to_other"]
    assert found.row_labels == tuple("01234")
    assert found.column_labels == ("conv", "out")  # dropout passes on its input
    assert compared(mlp(0), other=other, other_layers="out")["to_other"].column_labels == ("out",)
    assert before == digest({**other.state_dict(), "training": other.training, "hooks": len(other.conv._forward_hooks)})


def test_a_network_that_does_not_run_on_the_samples_is_refused_by_the_argument() -> None:
    with pytest.raises(MisconfigurationException, match="other= does not run on the samples"):
        compared(mlp(0), other=nn.Linear(5, 2))


def test_a_state_of_another_network_is_refused_by_the_argument() -> None:
    with pytest.raises(ValueError, match="other"):
        compared(mlp(0), other=nn.Linear(5, 2).state_dict())


def test_in_a_fit_the_other_network_is_looked_at_once() -> None:
    passes: list[int] = []

    class Counted(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            passes.append(len(x))
            return super().forward(x)

    cka = LayerCKA(
        other=Counted(), data="train", num_samples=16, micro_batch_size=8, schedule=[EveryNSteps(2), AtFitEnd()],
        predict_fn=lambda module, batch: (module(torch.cat([batch[0], batch[0][:, :2]], 1)), batch[1]),
    )  # fmt: skip
    fit(CASES["list_batch"].make, [cka])
    looks = len(passes)
    assert [isinstance(row["cka/to_other_mean"], float) for row in cka.history] == [True] * len(cka.history)
    assert len(cka.history) > 2
    assert looks <= 2 + 4  # two micro-batches once, and the passes of the checks before
    assert isinstance(cka.results["cka/to_other_mean"], Scalar)
