"""Whatever a probe compares or subtracts is one function, computed in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_probes import InitInterpolation, LayerCKA, Probe, Sharpness
from lightning_probes.callbacks.curvature.hessian import Curvature
from lightning_probes.results import Curve, Scalar
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader, normal
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.tester import assert_same, fingerprint, fit, probe


def value(measured: dict[str, Any], key: str) -> float:
    result = measured[key]
    assert isinstance(result, Scalar)
    return result.value


def rise_along_gradient(module: Supervised, batch: Any, rho: float) -> float:
    """SAM sharpness, written down, with gradients on throughout."""
    module.eval()
    params = list(module.parameters())
    before = module.loss_of(batch)
    slopes = torch.autograd.grad(before, params)
    length = torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt()
    with torch.no_grad():
        for parameter, slope in zip(params, slopes, strict=True):
            parameter.add_(rho / length * slope)
    after = module.loss_of(batch)
    with torch.no_grad():
        for parameter, slope in zip(params, slopes, strict=True):
            parameter.sub_(rho / length * slope)
    return float((after - before).detach())


# -- what PyTorch computes in another way without gradients ------------------------------------------------------------


class Padded(nn.Module):
    """Zeros are padding, and the mean is taken over them too."""

    def __init__(self, layers: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.layers = layers()
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x, padding = self.embedding(ids), ids == 0
        if isinstance(self.layers, nn.MultiheadAttention):
            x = self.layers(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        else:
            x = self.layers(x, src_key_padding_mask=padding)
        return self.head(x.mean(1))


class Branching(nn.Module):
    """Takes a short cut where no gradients are asked for, as fused inference kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if torch.is_grad_enabled() else self.net(x).half().float()


def layer(**arguments: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **arguments)


def padded_ids() -> TensorDataset:
    ids = torch.randint(1, 20, (40, 7), generator=torch.Generator().manual_seed(0))
    for row in range(40):
        ids[row, 2 + row % 5 :] = 0
    return TensorDataset(ids, torch.arange(40) % 3)


TAKES_ANOTHER_WAY: dict[str, tuple[Callable[[], nn.Module], Callable[[], TensorDataset]]] = {
    "encoder, nested tensors": (lambda: Padded(lambda: nn.TransformerEncoder(layer(), 2)), padded_ids),
    "encoder without them": (
        lambda: Padded(lambda: nn.TransformerEncoder(layer(norm_first=True), 1, enable_nested_tensor=False)),
        padded_ids,
    ),
    "encoder layer": (lambda: Padded(layer), padded_ids),
    "attention": (lambda: Padded(lambda: nn.MultiheadAttention(8, 2, batch_first=True)), padded_ids),
    "user's own": (Branching, lambda: labelled(4)),
}


@pytest.mark.parametrize("what", TAKES_ANOTHER_WAY)
def test_sharpness_and_interpolation_see_the_loss_that_has_gradients(what: str) -> None:
    make, samples = TAKES_ANOTHER_WAY[what]
    torch.manual_seed(0)
    module, data = Supervised(make()), samples()
    whole = {"num_samples": 40, "micro_batch_size": 40}

    sharp = Sharpness(quantities=("sam",), rho=0.5, **whole).evaluate(module, data)
    line = InitInterpolation(num_alphas=2, **whole).evaluate(module, data, init_state=module.state_dict())

    with torch.enable_grad():
        expected = float(module.eval().loss_of(data.tensors).detach())
    curve = line["interpolation/loss"]
    assert isinstance(curve, Curve)
    assert value(sharp, "sharpness/loss") == pytest.approx(expected, rel=1e-5)
    assert curve.y.tolist() == pytest.approx([expected, expected], rel=1e-5)
    assert value(sharp, "sharpness/sam") == pytest.approx(
        rise_along_gradient(module, data.tensors, 0.5), rel=1e-3, abs=1e-5
    )


def test_switches_of_the_process_are_as_they_were_in_a_fit_and_after_it() -> None:
    def run(callbacks: list[Probe]) -> Any:
        return fit(lambda: Fit(Supervised(Padded(layer)), loader(padded_ids())), callbacks, detect_anomaly=True)

    assert_same(fingerprint(run([probe("sharpness", quantities=("sam",))])), fingerprint(run([])))
    assert torch.backends.mha.get_fastpath_enabled()


# -- losses that differentiate by themselves ---------------------------------------------------------------------------


class Forces(Supervised):
    """A loss on the slope of the output."""

    def loss_of(self, batch: Any) -> Tensor:
        x = batch[0].clone().requires_grad_()
        energy = self.net(x)
        (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return (energy - batch[1][:, None]).square().mean() + slope.square().mean()


class PenalisesSlopes(Supervised):
    """A penalty on the gradient by the parameters."""

    def loss_of(self, batch: Any) -> Tensor:
        loss = super().loss_of(batch)
        slopes = torch.autograd.grad(loss, list(self.parameters()), create_graph=True)
        return loss + 0.1 * torch.stack([slope.square().sum() for slope in slopes]).sum()


class Relaxes(Supervised):
    """Samples by gradient descent on an energy first."""

    def loss_of(self, batch: Any) -> Tensor:
        x = batch[0].clone()
        for _ in range(3):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.net(x).sum(), x)
            x = x - 0.1 * slope
        return self.net(batch[0]).mean() - self.net(x.detach()).mean() + self.net(x.detach()).square().mean()


DIFFERENTIATES: dict[str, Callable[[], Supervised]] = {
    "forces": lambda: Forces(mlp(4, 1)),
    "a penalty on slopes": lambda: PenalisesSlopes(mlp()),
    "an energy model": lambda: Relaxes(mlp(4, 1), lr=0.01),
}


@pytest.mark.parametrize("kind", [Sharpness, InitInterpolation, LayerCKA])
@pytest.mark.parametrize("what", DIFFERENTIATES)
def test_loss_that_differentiates_is_measured_and_training_is_left_as_it_was(what: str, kind: type[Probe]) -> None:
    def make() -> Fit:
        return Fit(DIFFERENTIATES[what](), loader(labelled(4)))

    measured = kind(num_samples=24, micro_batch_size=8)
    run = fit(make, [measured])

    assert_same(fingerprint(run), fingerprint(fit(make)))
    assert measured.history[-1]["step"] == 5
    assert not any(entry[f"{measured.name}/flag/nonfinite"] for entry in measured.history)


@pytest.mark.parametrize("what", DIFFERENTIATES)
def test_loss_that_differentiates_has_its_own_value_and_rise(what: str) -> None:
    torch.manual_seed(0)
    module, data = DIFFERENTIATES[what](), labelled(4)
    sharp = Sharpness(quantities=("sam",), num_samples=40, micro_batch_size=40).evaluate(module, data)
    expected = float(module.eval().loss_of(data.tensors).detach())
    assert value(sharp, "sharpness/loss") == pytest.approx(expected, rel=1e-5)
    assert value(sharp, "sharpness/sam") == pytest.approx(
        rise_along_gradient(module, data.tensors, 0.05), rel=1e-3, abs=1e-6
    )


def test_blocks_of_layers_of_such_a_loss_need_no_kept_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, data = PenalisesSlopes(mlp()), labelled(4)
    layers = Sharpness(quantities=("lambda_max",), per_layer=True, micro_batch_size=20)
    kept = layers.evaluate(module, data)
    monkeypatch.setattr(Curvature.__init__, "__defaults__", (0, True))  # no room for graphs
    lean = layers.evaluate(module, data)
    for key in ("sharpness/lambda_max/layer/net/0", "sharpness/lambda_max"):
        assert value(lean, key) == pytest.approx(value(kept, key), rel=1e-4)


def test_passes_without_gradients_go_on_where_they_change_nothing() -> None:
    seen: list[bool] = []

    def loss_fn(module: nn.Module, batch: Any) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return F.cross_entropy(module(batch[0]), batch[1])

    line = InitInterpolation(num_alphas=5, num_samples=40, micro_batch_size=40, loss_fn=loss_fn)
    module = mlp()
    line.evaluate(module, TensorDataset(normal(40, 4), torch.arange(40) % 3), init_state=module.state_dict())
    assert seen[-5:] == [False] * 5
