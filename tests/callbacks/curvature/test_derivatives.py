"""What a loss must have for its derivatives to be measured, and what is said where it has not."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.data import TensorDataset

from lightning_probes import FisherTrace, Sharpness
from lightning_probes.testing.zoo import CASES, Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.tester import fit, probe

SMALL = {"num_samples": 24, "micro_batch_size": 8}


def measured(net: nn.Module, data: Any = None, kind: Callable[..., Supervised] = Supervised, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return Sharpness(**SMALL, **arguments).evaluate(kind(net), labelled(4) if data is None else data)


# -- backward passes that autograd can't see ---------------------------------------------------------------------------


class Opaque(torch.autograd.Function):
    """A softplus by NumPy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.softplus(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.from_numpy(grad.detach().numpy() * ctx.saved_tensors[0].detach().sigmoid().numpy())


class Marked(Opaque):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].sigmoid()


class Single(Opaque):
    """Written for float32 alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("expected float32")
        return Opaque.forward(ctx, x)


class Sound(torch.autograd.Function):
    """A softplus of which autograd has every derivative."""

    forward = Opaque.forward

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].sigmoid()


class Applied(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.head, self.function = nn.Linear(4, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.first(x)))


class HookedGradient(nn.Module):
    """Rescales a gradient on its way back, out of autograd's sight."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = mlp(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net(x)
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: grad.detach() * 1.0)
        return self.head(hidden.tanh())


@pytest.mark.parametrize("quantities", [("lambda_max",), ("trace", "sam")])
@pytest.mark.parametrize("function", [Opaque, Marked])
def test_function_and_layers_without_second_derivatives_are_named(function: Any, quantities: Any) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        measured(Applied(function.apply), quantities=quantities)
    message = str(caught.value)
    for words in ("Sharpness: autograd misses", f"through {function.__name__}:", "net.first", "quantities=('sam',)"):
        assert words in message


def test_gradient_that_a_hook_detaches_is_found_by_its_layers() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"autograd misses second derivatives of the loss: .*net\.net\.0"
    ):
        measured(HookedGradient())


@pytest.mark.parametrize("net", [lambda: Applied(Opaque.apply), HookedGradient], ids=["function", "hook"])
def test_first_derivatives_alone_are_measured_all_the_same(net: Callable[[], nn.Module]) -> None:
    assert measured(net(), quantities=("sam",))["sharpness/sam"].value > 0


def test_function_that_runs_in_float32_alone_is_warned_of_by_name() -> None:
    with pytest.warns(UserWarning, match=r"whether Single can be differentiated twice is not known.*expected float32"):
        measured(Applied(Single.apply), quantities=("lambda_max",))


def test_function_with_a_differentiable_backward_pass_is_measured_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measured(Applied(Sound.apply))
    assert found["sharpness/lambda_max"].value == pytest.approx(
        measured(Applied(F.softplus))["sharpness/lambda_max"].value, rel=1e-4
    )


# -- what is never refused ---------------------------------------------------------------------------------------------


class UpcastsInside(nn.Module):
    """Computes a part in float32 whatever the model's precision, as norms and softmaxes of language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).float().tanh() + torch.zeros(8)
        return self.head(F.softmax(hidden, -1, dtype=torch.float32).to(x.dtype))


class HoldsConstant(Supervised):
    """Weighs samples by how wrong they are, without differentiating the weights."""

    def loss_of(self, batch: Any) -> Tensor:
        losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
        return (losses * losses.detach()).mean()


class Rotates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 4)
        self.register_buffer("phases", torch.polar(torch.ones(4), torch.arange(4.0)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) * self.phases).abs()[:, :3]


NEVER_REFUSED: dict[str, Callable[[], Supervised]] = {
    "ReLU": lambda: Supervised(nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), mlp(64))),
    "hard tanh": lambda: Supervised(nn.Sequential(nn.Linear(4, 64), nn.Hardtanh(-0.1, 0.1), mlp(64))),
    "casts to float32": lambda: Supervised(UpcastsInside()),
    "complex buffer": lambda: Supervised(Rotates()),
    "dropout": lambda: Supervised(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))),
    "a part held constant": lambda: HoldsConstant(mlp()),
}


@pytest.mark.parametrize(
    ("what", "precision"),
    [
        (what, precision)
        for what in NEVER_REFUSED
        for precision in ("32-true", "bf16-mixed", "64-true", "bf16-true")
        if what != "complex buffer" or precision != "bf16-true"  # there are no such complex numbers
    ],
)
def test_healthy_module_is_measured_without_a_warning(what: str, precision: Any) -> None:
    sharp = Sharpness(**SMALL)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*Sharpness")
        fit(lambda: Fit(NEVER_REFUSED[what](), loader(labelled(4))), [sharp], precision=precision)
    assert sharp.history
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("case", ["cnn", "bert", "graph_batch"])
def test_whole_batches_are_taken_where_it_is_not_clear_how_to_cut_them(case: str) -> None:
    sharp = probe("sharpness", num_samples=16, quantities=("lambda_max",))
    fit(CASES[case].make, [sharp], max_steps=2)
    assert sharp.history


def test_part_held_constant_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        measured(mlp(), kind=HoldsConstant)
    [said] = [record.message for record in caplog.records if "part of the loss is held constant" in record.message]
    assert said.startswith("Sharpness 'sharpness': ")


# -- operations without a second derivative ----------------------------------------------------------------------------


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bag(ids))


class Transcribes(Supervised):
    def loss_of(self, batch: Any) -> Tensor:
        logits, size = self(batch[0]).log_softmax(-1).transpose(0, 1), len(batch[0])
        return F.ctc_loss(logits, batch[1], torch.full((size,), 9), torch.full((size,), 2))


ids = torch.randint(20, (24, 5), generator=torch.Generator().manual_seed(0))
speech = TensorDataset(torch.randn(24, 9, 4, generator=torch.Generator().manual_seed(0)), ids[:, :2] % 4 + 1)
ONCE: dict[str, tuple[Callable[[], Supervised], TensorDataset]] = {
    "bags of embeddings": (lambda: Supervised(Bag()), TensorDataset(ids, torch.arange(24) % 3)),
    "CTC": (lambda: Transcribes(mlp(4, 6)), speech),
}


@pytest.mark.parametrize("what", ONCE)
def test_loss_with_one_derivative_is_refused_in_a_sentence_and_its_sam_is_measured(what: str) -> None:
    make, data = ONCE[what]
    with pytest.raises(
        MisconfigurationException, match=r"^Sharpness: .*twice .*not implemented.*quantities=\('sam',\)"
    ):
        Sharpness(**SMALL).evaluate(make(), data)
    found = Sharpness(quantities=("sam",), **SMALL).evaluate(make(), data)
    assert found["sharpness/sam"].value > 0


def test_sam_alone_keeps_no_graph_of_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **kw: asked.append(kw.get("create_graph", False)) or grad(*args, **kw)
    )
    measured(mlp(), quantities=("sam",))
    assert asked
    assert not any(asked)


# -- derivatives in training mode only ---------------------------------------------------------------------------------


class Forces(Supervised):
    """Keeps the graph of its forces in training mode only."""

    of_energy = True

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        energy = self.net(x)
        (slope,) = torch.autograd.grad([energy.sum()], [x], create_graph=self.training)
        return torch.cat([energy, -slope], 1) if self.of_energy else -slope

    def loss_of(self, batch: Any) -> Tensor:
        return self(batch[0]).square().mean()


class ForcesAlone(Forces):
    of_energy = False


def in_training_mode(module: Forces, batch: Any) -> Tensor:
    module.train()
    return module.loss_of(batch)


@pytest.mark.parametrize("quantities", [("sam",), ("lambda_max",)])
@pytest.mark.parametrize("kind", [Forces, ForcesAlone])
def test_loss_without_derivatives_in_eval_mode_is_told_the_loss_fn_that_helps(kind: Any, quantities: Any) -> None:
    words = r"^Sharpness: the loss can't be differentiated in eval mode.*loss_fn=.*module\.train\(\)"
    with pytest.raises(MisconfigurationException, match=words):
        measured(mlp(4, 1), kind=kind, quantities=quantities)
    found = measured(mlp(4, 1), kind=kind, quantities=quantities, loss_fn=in_training_mode)
    assert found[f"sharpness/{quantities[0]}"].value > 0


def test_logits_without_derivatives_in_eval_mode_are_told_the_predict_fn_that_helps() -> None:
    def in_training(module: Any, batch: Any) -> tuple[Tensor, None]:
        module.train()
        return module(batch[0]), None

    def fisher(**arguments: Any) -> Any:
        probe = FisherTrace(likelihood="gaussian", **SMALL, **arguments)
        return probe.evaluate(Forces(mlp(4, 1)), TensorDataset(*labelled(4).tensors))

    words = r"^FisherTrace: the logits can't be differentiated in eval mode.*predict_fn=.*module\.train\(\)"
    with pytest.raises(MisconfigurationException, match=words):
        fisher(predict_fn=lambda module, batch: (module(batch[0]), None))
    assert fisher(predict_fn=in_training)["fisher/trace"].value > 0
