from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_probes.functional.curvature.hvp import double_backward_kernels
from lightning_probes.functional.curvature.missing_curvature import missing_curvature

DRAWS = torch.Generator().manual_seed(0)


def images(*shape: int) -> Tensor:
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def padded(*shape: int) -> Tensor:
    """With zeros, at which a ReLU without a bias has its kink."""
    inputs = images(*shape)
    inputs[:, ..., -2:] = 0
    return inputs


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


class LastOf(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(3, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class PaddedTokens(nn.Module):
    """The row of the padding moves the loss, and its gradient is kept at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6, padding_idx=0)
        self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        with torch.no_grad():
            self.embedding.weight[0] = 0.5

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).mean(1))


def wide(activation: nn.Module, bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 512, bias=bias), activation, nn.Linear(512, 512, bias=bias), activation, nn.Linear(512, 3)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 64, 3),
    ).eval()  # fmt: skip


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "tanh": (lambda: wide(nn.Tanh()), images(20)),
    "ReLU": (lambda: wide(nn.ReLU()), images(20)),
    "ReLU at its kink": (lambda: wide(nn.ReLU(), bias=False), torch.zeros(4, 20, dtype=torch.float64)),
    "hard tanh": (lambda: wide(nn.Hardtanh()), 5 * images(20)),
    "ReLU, BatchNorm and max-pooling": (convolutional, images(3, 16, 16)),
    "max-pooling over equal values": (convolutional, padded(3, 16, 16)),
    "attention": (Attends, images(5, 8)),
    "LSTM": (lambda: LastOf(nn.LSTM), images(5, 3)),
    "GRU": (lambda: LastOf(nn.GRU), images(5, 3)),
    "embedding of padding": (PaddedTokens, torch.tensor([[1, 2, 0], [3, 0, 0], [4, 1, 2], [2, 0, 0]])),
    "a linear model": (lambda: nn.Linear(20, 3), images(20)),
}


def comparison(net: nn.Module, inputs: Tensor) -> tuple[Callable[[Mapping[str, Tensor]], Tensor], dict[str, Tensor]]:
    net = net.double()
    params = {name: parameter.detach() for name, parameter in net.named_parameters()}
    return lambda p: F.cross_entropy(functional_call(net, dict(p), (inputs,)), torch.arange(4) % 3), params


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("what", HEALTHY)
def test_nothing_is_missing_in_a_healthy_network(what: str, seed: int) -> None:
    make, inputs = HEALTHY[what]
    torch.manual_seed(seed)
    with double_backward_kernels():
        assert missing_curvature(*comparison(make(), inputs), DRAWS) is None


def test_nothing_is_missing_of_a_loss_without_curvature() -> None:
    params = {"w": torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)}
    assert missing_curvature(lambda p: (3 * p["w"]).sum(), params, DRAWS) is None
    assert missing_curvature(lambda p: p["w"].abs().sum(), params, DRAWS) is None


def test_loss_that_is_not_finite_can_not_be_judged() -> None:
    params = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    assert missing_curvature(lambda p: p["w"].log().sum(), params, DRAWS) is None


class Opaque(torch.autograd.Function):
    """A softplus whose backward pass autograd does not see."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return F.softplus(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.from_numpy(grad.detach().numpy() * x.detach().sigmoid().numpy())


class Halfway(Opaque):
    """One that autograd sees in the incoming gradient, and not in the slope: what is left is symmetric."""

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * x.detach().sigmoid()


class Applied(nn.Module):
    def __init__(self, function: type[torch.autograd.Function], activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(20, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.function, self.activation = function, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.second(self.function.apply(self.first(x)))))


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()])
def test_backward_pass_out_of_sight_is_found_and_the_layers_are_named(activation: nn.Module) -> None:
    torch.manual_seed(0)
    missing = missing_curvature(*comparison(Applied(Opaque, activation), images(20)), DRAWS)
    assert missing is not None
    assert missing.error > 0.01
    assert not missing.symmetric
    assert "first.weight" in missing.parameters


def test_slope_out_of_sight_is_found_though_what_is_left_is_symmetric() -> None:
    torch.manual_seed(0)
    missing = missing_curvature(*comparison(Applied(Halfway, nn.Tanh()), images(20)), DRAWS)
    assert missing is not None
    assert missing.symmetric
    assert {name.partition(".")[0] for name in missing.parameters} == {"first"}


def test_part_held_constant_is_found_and_is_symmetric() -> None:
    params = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    missing = missing_curvature(lambda p: (p["w"] ** 2 * p["w"].detach()).sum(), params, DRAWS)
    assert missing is not None
    assert missing.symmetric
