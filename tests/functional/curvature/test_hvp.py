from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import hessian_eigenthings
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_probes.functional.curvature.hvp import Loss, double_backward_kernels, gradient, hvp, linearize
from lightning_probes.functional.curvature.lanczos import lanczos_top_eigenpair
from lightning_probes.functional.parameter_vector import to_dict, to_vector

Batch = tuple[Tensor, Tensor]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0]
        return out


class PartlyUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.used(x))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)),
    "tanh": lambda: nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 4)),
    "attention": Attention,
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.0, batch_first=True),
    "lstm": Recurrent,
    "unused": PartlyUnused,
}


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Batch]:
    """A net with fewer than 500 parameters and 8 sequences of 3 tokens."""
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).eval()
    assert sum(tensor.numel() for tensor in model.parameters()) < 500
    return model, (torch.randn(8, 3, 4).to(dtype), torch.randint(4, (8, 3)))


def cross_entropy(model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(3 * model(batch[0]).flatten(0, 1), batch[1].flatten())


def problem(name: str, dtype: torch.dtype = torch.float64) -> tuple[Loss, dict[str, Tensor]]:
    model, batch = network(name, dtype)

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        return cross_entropy(lambda inputs: functional_call(model, dict(params), (inputs,)), batch)

    return loss, dict(model.named_parameters())


def flat(loss: Loss, params: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda vector: loss(to_dict(vector, like=params))


@cache
def explicit_hessian(name: str) -> Tensor:
    """By central differences of the float64 gradient, good to about 1e-9."""
    loss, params = problem(name)
    slope, at, step = torch.func.grad(flat(loss, params)), to_vector(params).detach(), 1e-5
    units = torch.eye(len(at), dtype=at.dtype)
    return torch.stack([(slope(at + step * unit) - slope(at - step * unit)) / (2 * step) for unit in units])


@pytest.mark.parametrize("name", MODELS)
def test_hvp_equals_product_with_explicit_hessian(name: str) -> None:
    loss, params = problem(name)
    hessian = explicit_hessian(name)
    vector = torch.randn(len(hessian), dtype=torch.float64)
    with double_backward_kernels():
        torch.testing.assert_close(hvp(loss, params, vector), hessian @ vector, rtol=1e-6, atol=1e-7)


# Not for "transformer": torch.func.hessian of torch 2.13 is not symmetric for LayerNorm (vmap of its double backward).
@pytest.mark.parametrize("name", ["relu", "tanh", "attention", "lstm", "unused"])
def test_hvp_equals_product_with_hessian_of_torch_func(name: str) -> None:
    loss, params = problem(name)
    with double_backward_kernels():
        hessian = torch.func.hessian(flat(loss, params))(to_vector(params).detach())
        vector = torch.randn(len(hessian), dtype=torch.float64)
        torch.testing.assert_close(hvp(loss, params, vector), hessian @ vector)


@pytest.mark.parametrize("name", MODELS)
def test_linearize_equals_hvp_for_every_vector(name: str) -> None:
    loss, params = problem(name)
    with double_backward_kernels():
        matvec = linearize(loss, params)
        for vector in torch.randn(3, len(to_vector(params)), dtype=torch.float64):
            torch.testing.assert_close(matvec(vector), hvp(loss, params, vector))


@pytest.mark.parametrize("name", MODELS)
def test_restricted_linearization_is_the_diagonal_block_of_the_explicit_hessian(name: str) -> None:
    loss, params = problem(name)
    numbers = to_dict(torch.arange(len(to_vector(params)), dtype=torch.float64), like=params)
    with double_backward_kernels():
        whole = linearize(loss, params)
        for names in ([next(iter(params))], list(params)[1:3], list(params)[-1:]):
            block = whole.restricted(names)
            at = to_vector({key: numbers[key] for key in names}).long()
            products = torch.stack([block(unit) for unit in torch.eye(len(at), dtype=torch.float64)])
            torch.testing.assert_close(products, explicit_hessian(name)[at][:, at], rtol=1e-6, atol=1e-7)
            assert list(block.leaves) == names
        torch.testing.assert_close(block.gradient, whole.gradient[at])


@pytest.mark.parametrize("name", MODELS)
def test_lanczos_on_float32_hvp_equals_top_of_explicit_spectrum(name: str) -> None:
    exact = torch.linalg.eigvalsh(explicit_hessian(name))[-1].item()
    loss, params = problem(name, torch.float32)
    start = torch.randn(len(to_vector(params)), generator=torch.Generator().manual_seed(0))
    with double_backward_kernels():
        pair = lanczos_top_eigenpair(linearize(loss, params), start)
        true_residual = hvp(loss, params, pair.vector) - pair.value * pair.vector
    assert pair.converged
    assert pair.value == pytest.approx(exact, rel=1e-3)
    assert true_residual.norm().item() / abs(pair.value) == pytest.approx(pair.residual, rel=0.05, abs=1e-5)


@pytest.mark.parametrize("name", ["relu", "tanh", "attention", "transformer", "lstm"])
def test_products_and_top_eigenvalue_equal_those_of_hessian_eigenthings(name: str) -> None:
    model, batch = network(name)
    loss, params = problem(name)
    vector = torch.randn(len(to_vector(params)), dtype=torch.float64)
    with double_backward_kernels():
        peer = hessian_eigenthings.HessianOperator(model, [batch], cross_entropy)
        torch.testing.assert_close(hvp(loss, params, vector), peer.matvec(vector))
        top = hessian_eigenthings.lanczos(peer, k=1, max_iter=60, which="LA", seed=0).eigenvalues[0]
        pair = lanczos_top_eigenpair(linearize(loss, params), vector)
    assert pair.value == pytest.approx(float(top), rel=1e-5)


def test_gradient_equals_backward() -> None:
    loss, params = problem("transformer")
    value, vector = gradient(loss, params)
    direct = loss(params)
    direct.backward()
    torch.testing.assert_close(value, direct.detach())
    torch.testing.assert_close(vector, torch.cat([tensor.grad.flatten() for tensor in params.values()]))  # type: ignore[union-attr]
    assert not value.requires_grad
    assert not vector.requires_grad


def test_callers_parameters_keep_grad_and_requires_grad() -> None:
    loss, params = problem("unused")
    frozen = params["used.bias"].requires_grad_(False)
    before = {name: tensor.detach().clone() for name, tensor in params.items()}
    gradient(loss, params)
    product = hvp(loss, params, torch.ones(len(to_vector(params)), dtype=torch.float64))
    assert product[16:20].any(), "a frozen parameter that is in params is differentiated all the same"
    assert not frozen.requires_grad
    assert all(tensor.grad is None and torch.equal(tensor, before[name]) for name, tensor in params.items())


@pytest.mark.parametrize(
    "loss",
    [
        lambda p: torch.tensor(2.0),
        lambda p: p["a"].detach().sum(),
        lambda p: 0.0 * p["a"].sum(),
        lambda p: p["a"].sum() + 3 * p["b"].sum(),
        lambda p: (p["a"] * torch.arange(3.0)).sum(),
    ],
    ids=["constant", "detached", "zero", "linear", "linear-with-unused"],
)
def test_flat_losses_have_zero_hessian(loss: Loss) -> None:
    params = {"a": torch.randn(3), "b": torch.randn(2)}
    assert hvp(loss, params, torch.ones(5)).tolist() == [0.0] * 5
    assert linearize(loss, params)(torch.ones(5)).tolist() == [0.0] * 5
    assert gradient(loss, params)[1].shape == (5,)


def test_parameters_that_enter_linearly_get_zero_and_the_others_their_curvature() -> None:
    params = {"linear": torch.ones(2), "quadratic": torch.ones(2)}
    product = hvp(lambda p: p["linear"].sum() + (p["quadratic"] ** 2).sum(), params, torch.ones(4))
    assert product.tolist() == [0, 0, 2, 2]


def test_hvp_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert hvp(lambda p: (p["w"] ** 2).sum(), {"w": torch.ones(1)}, torch.ones(1)).tolist() == [2]


@pytest.mark.parametrize("value", [torch.ones(2), 1.0])
def test_loss_that_is_no_scalar_tensor_is_an_error(value: object) -> None:
    with pytest.raises(ValueError, match="tensor with one element"):
        gradient(lambda p: value, {"w": torch.ones(1)})  # type: ignore[arg-type, return-value]


def test_dropping_the_linearised_loss_frees_its_graph_at_once() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        hidden = torch.tanh(params["w"])
        seen.append(weakref.ref(hidden))
        return (hidden**2).sum()

    gc.disable()
    try:
        matvec = linearize(loss, {"w": torch.ones(3)})
        matvec(torch.ones(3))
        del matvec
        assert seen[0]() is None
    finally:
        gc.enable()


def test_nan_loss_gives_nan_products() -> None:
    product = hvp(lambda p: (p["w"] ** 2).sum() * math.nan, {"w": torch.ones(1)}, torch.ones(1))
    assert product.isnan().all()


def attention_loss(params: Mapping[str, Tensor]) -> Tensor:
    x = torch.arange(32.0).reshape(1, 1, 8, 4).sin()
    return (nn.functional.scaled_dot_product_attention(params["q"] * x, params["k"] * x, x) ** 2).sum()


ATTENTION = {"q": torch.ones(4), "k": torch.ones(4)}


def test_attention_has_no_second_derivative_outside_the_context() -> None:
    """The reason for `double_backward_kernels`; if this fails, the fused kernel has learnt it."""
    with pytest.raises(RuntimeError, match="not implemented"):
        hvp(attention_loss, ATTENTION, torch.ones(8))
    with double_backward_kernels():
        assert hvp(attention_loss, ATTENTION, torch.ones(8)).any()


_CANDIDATES = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
MATMUL_BACKENDS: list[Any] = [backend for backend in _CANDIDATES if hasattr(backend, "fp32_precision")]  # torch 2.9


def settings() -> list[object]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    sdp = [
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    ]
    convolutions = getattr(getattr(cudnn, "conv", None), "fp32_precision", None)
    flags = [cudnn.enabled, cudnn.benchmark, cudnn.deterministic, convolutions]
    return [*sdp, *flags, *(backend.fp32_precision for backend in MATMUL_BACKENDS)]


@pytest.fixture
def _restored_settings() -> Iterator[None]:
    precisions, cudnn = [backend.fp32_precision for backend in MATMUL_BACKENDS], torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = True
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")
    for backend, precision in zip(MATMUL_BACKENDS, precisions, strict=True):
        backend.fp32_precision = precision
    torch.backends.cudnn.enabled = cudnn


@pytest.mark.usefixtures("_restored_settings")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "precision", ["highest", "high", "medium", ["none", "none"], ["tf32", "none"], ["ieee", "bf16"]], ids=str
)
def test_context_restores_every_setting(precision: str | list[str], fails: bool) -> None:
    if isinstance(precision, str):
        torch.set_float32_matmul_precision(precision)
    elif not MATMUL_BACKENDS:
        pytest.skip("this torch has one setting for all")
    else:
        for backend, value in zip(MATMUL_BACKENDS, precision, strict=True):
            backend.fp32_precision = value
    before = settings()
    try:
        with double_backward_kernels():
            inside = settings()
            assert torch.get_float32_matmul_precision() == "highest"  # raises if the two kinds of settings contradict
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert inside[:5] == [False, False, True, False, False]
    assert inside[5:8] == before[5:8]
    assert inside[8:] == ["ieee"] * len(MATMUL_BACKENDS)
    assert settings() == before
    if isinstance(precision, str):
        assert torch.get_float32_matmul_precision() == precision


@pytest.mark.usefixtures("_restored_settings")
def test_matrix_products_inside_the_context_are_full_float32() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(2, 256, 256)
    exact = left.double() @ right.double()
    torch.set_float32_matmul_precision("medium")  # bfloat16 products, on CPUs that have them
    with double_backward_kernels():
        error = (left @ right - exact).norm() / exact.norm()
    assert error < 1e-6


def test_sparse_gradients_are_refused_by_the_name_of_the_parameter() -> None:
    def loss(params: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.embedding(torch.tensor([0, 2]), params["words"], sparse=True).square().sum()

    with pytest.raises(ValueError, match=r"'words' is sparse.*sparse=False"):
        gradient(loss, {"words": torch.ones(3, 2)})
