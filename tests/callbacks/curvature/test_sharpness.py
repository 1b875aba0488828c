from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss

from lightning_probes import EveryNSteps, Sharpness
from lightning_probes.functional.curvature.hvp import Linearization
from tests.callbacks.models import Supervised, classification, explicit_hessian, loader, trainer


class Pooled(nn.Module):
    """A sequence layer, the mean over its steps, and a linear head; the head's twin is never used."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head, self.unused = layer, nn.Linear(width, 3), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(x.unflatten(1, (2, 4)))
        return self.head((output[0] if isinstance(output, tuple) else output).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
    "tanh": lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
    "attention": lambda: Pooled(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 4),
    "lstm": lambda: Pooled(nn.LSTM(4, 3, batch_first=True), 3),
    "gru": lambda: Pooled(nn.GRU(4, 3, batch_first=True), 3),
}


def network(name: str) -> Supervised:
    torch.manual_seed(0)
    return Supervised(NETWORKS[name]()).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_lambda_max_and_trace_equal_the_explicit_hessian(name: str) -> None:
    x, y = classification(inputs=8)
    module = network(name)
    with sdpa_kernel(SDPBackend.MATH):
        hessian = explicit_hessian(module, lambda: cross_entropy(module(x), y)).double()
    probe = Sharpness(quantities=("lambda_max", "trace"))
    results = probe.evaluate(module, loader(x, y))
    assert results["sharpness/lambda_max"].value == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)
    assert results["sharpness/lambda_max_residual"].value < 1e-3
    assert not results["sharpness/flag/not_converged"].raised
    trace = results["sharpness/trace"]
    assert abs(trace.value - float(hessian.trace())) < 4 * trace.standard_error


@pytest.mark.parametrize(("quantities", "products"), [(("trace",), 30), (("lambda_max", "trace"), None)])
def test_trace_errs_less_than_thirty_random_vectors_would_once_a_few_eigenvalues_stand_out(
    quantities: tuple[Any, ...], products: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = classification(inputs=8)[0]
    y = x[:, :3].argmax(1)
    module = network("tanh")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(30):  # training makes some eigenvalues stand out
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()
    hessian = explicit_hessian(module, lambda: cross_entropy(module(x), y)).double()
    hutchinson = (2 * ((hessian**2).sum() - (hessian.diagonal() ** 2).sum()) / 30).sqrt().item()
    calls: list[Any] = []
    product = Linearization.__call__
    monkeypatch.setattr(Linearization, "__call__", lambda *args: calls.append(args) or product(*args))
    errors = []
    for seed in range(20):
        calls.clear()
        trace = Sharpness(quantities=quantities, seed=seed).evaluate(module, loader(x, y, batch_size=100))[
            "sharpness/trace"
        ]
        assert products in (None, len(calls))
        errors.append((trace.value - float(hessian.trace()), trace.standard_error))
    stated = math.sqrt(sum(error**2 for _, error in errors) / 20)
    actual = math.sqrt(sum(error**2 for error, _ in errors) / 20)
    assert actual < stated * 1.5  # of 20 draws it is known to about 16 %
    assert stated < 0.8 * hutchinson


@pytest.mark.parametrize("name", NETWORKS)
def test_per_layer_lambda_max_and_trace_equal_the_blocks_of_the_explicit_hessian(name: str) -> None:
    x, y = classification(inputs=8)
    module = network(name)
    with sdpa_kernel(SDPBackend.MATH):
        hessian = explicit_hessian(module, lambda: cross_entropy(module(x), y)).double()
    results = Sharpness(quantities=("lambda_max", "trace"), per_layer=True).evaluate(module, loader(x, y))
    layers, begin = set(), 0
    for owner, child in module.named_modules():
        size = sum(parameter.numel() for parameter in child.parameters(recurse=False))
        if not size:
            continue
        block, begin = hessian[begin : begin + size, begin : begin + size], begin + size
        layer = owner.replace(".", "/")
        layers.add(layer)
        value = results[f"sharpness/lambda_max/layer/{layer}"].value
        assert value == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=1e-3, abs=1e-6)
        trace = results[f"sharpness/trace/layer/{layer}"]
        assert abs(trace.value - float(block.trace())) <= 4 * trace.standard_error
    assert begin == len(hessian)
    for quantity in ("lambda_max", "trace"):
        found = {key.partition("layer/")[2] for key in results if key.startswith(f"sharpness/{quantity}/layer/")}
        assert found == layers
    parts = [result.value for key, result in results.items() if "trace/layer/" in key]
    assert sum(parts) == pytest.approx(results["sharpness/trace"].value, rel=1e-12)
    assert not results["sharpness/flag/not_converged"].raised


def test_per_layer_adds_keys_and_changes_no_other() -> None:
    x, y = classification(inputs=8)
    plain, layered = (
        Sharpness(quantities=("lambda_max", "sam", "trace"), per_layer=per_layer).evaluate(
            network("tanh"), loader(x, y)
        )
        for per_layer in (False, True)
    )
    assert not any("/layer/" in key for key in plain)
    assert [key for key in layered if "/layer/" not in key] == list(plain)
    for key, result in plain.items():
        assert layered[key].value == result.value
    assert not any("/layer/" in key for key in Sharpness(quantities=("sam",), per_layer=True).evaluate(
        network("tanh"), loader(x, y)
    ))  # fmt: skip


def test_layers_with_a_single_parameter_are_measured_event_after_event() -> None:
    torch.manual_seed(0)
    module = Supervised(nn.Sequential(nn.Linear(4, 8), nn.PReLU(), nn.Linear(8, 3)))
    probes = [Sharpness(per_layer=True, schedule=EveryNSteps(1), seed=seed, name=f"s{seed}") for seed in range(3)]
    trainer(max_steps=3, callbacks=probes).fit(module, loader(*classification()))
    for probe in probes:
        values = [entry[f"{probe.name}/lambda_max/layer/net/1"] for entry in probe.history]
        assert len(values) > 1
        assert all(math.isfinite(value) for value in values)


def test_layers_are_those_of_trainable_parameters_with_tied_ones_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.empty = nn.Parameter(torch.ones(3)), nn.Module()
            self.first, self.second, self.frozen = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.second.weight = self.first.weight
            self.empty.register_parameter("device", nn.Parameter(torch.empty(0)))
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.frozen(torch.tanh(self.second(torch.tanh(self.first(x)))))

    torch.manual_seed(0)
    x, y = classification(inputs=8)
    net = Tied()
    results = Sharpness(
        quantities=("lambda_max", "trace"),
        per_layer=True,
        loss_fn=lambda m, batch: cross_entropy(m(batch[0]), batch[1]),
    ).evaluate(net, loader(x, y))
    found = [key.removeprefix("sharpness/lambda_max/layer/") for key in results if "lambda_max/layer/" in key]
    assert found == ["root", "first", "second"]
    hessian = explicit_hessian(net, lambda: cross_entropy(net(x), y)).double()
    for layer, part in {"root": slice(3), "first": slice(3, 75), "second": slice(75, 83)}.items():
        top = float(torch.linalg.eigvalsh(hessian[part, part])[-1])
        assert results[f"sharpness/lambda_max/layer/{layer}"].value == pytest.approx(top, rel=1e-3)
        trace = results[f"sharpness/trace/layer/{layer}"]
        assert abs(trace.value - float(hessian.diagonal()[part].sum())) < 4 * trace.standard_error


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3, 1e8])
def test_lambda_max_is_equivariant_to_the_scale_of_the_loss(scale: float) -> None:
    x, y = classification(inputs=8)
    module = network("tanh")
    one, other = (
        Sharpness(loss_fn=lambda m, batch, s=s: s * cross_entropy(m(batch[0]), batch[1])).evaluate(module, loader(x, y))
        for s in (1.0, scale)
    )
    assert other["sharpness/lambda_max"].value == pytest.approx(scale * one["sharpness/lambda_max"].value, rel=1e-4)
    assert other["sharpness/flag/not_converged"].raised == one["sharpness/flag/not_converged"].raised


def test_lambda_max_is_the_largest_eigenvalue_not_the_largest_in_magnitude() -> None:
    def loss(module: Any, batch: Any) -> Tensor:
        w = module.net.weight.flatten()
        return (torch.tensor([1.0, -5.0, 0.5, -2.0]) * w.square()).sum() / 2 + 0 * batch[0].sum()

    module = Supervised(nn.Linear(4, 1, bias=False))
    results = Sharpness(loss_fn=loss).evaluate(module, loader(torch.randn(8, 4), torch.zeros(8)))
    assert results["sharpness/lambda_max"].value == pytest.approx(1.0, rel=1e-3)


def test_lambda_max_does_not_depend_on_micro_batches_and_its_error_is_their_spread() -> None:
    x, y = classification(samples=60, inputs=8)
    module = network("tanh")
    whole = Sharpness(micro_batch_size=60).evaluate(module, loader(x, y))["sharpness/lambda_max"]
    probe = Sharpness(micro_batch_size=12)
    split = probe.evaluate(module, loader(x, y))["sharpness/lambda_max"]
    assert split.value == pytest.approx(whole.value, rel=1e-3)
    assert whole.standard_error is None
    assert 0 < split.standard_error < whole.value


def test_sam_is_the_rise_of_the_loss_on_one_step_along_the_gradient() -> None:
    x, y = classification(inputs=8)
    module = network("tanh")
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(cross_entropy(module(x), y), parameters)
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    before = cross_entropy(module(x), y)
    moved = {n: p + 0.1 * g / norm for (n, p), g in zip(module.named_parameters(), gradients, strict=True)}
    after = cross_entropy(torch.func.functional_call(module, moved, (x,)), y)
    results = Sharpness(quantities=("sam",), rho=0.1).evaluate(module, loader(x, y))
    assert results["sharpness/sam"].value == pytest.approx(float(after - before), rel=1e-4)
    assert results["sharpness/loss"].value == pytest.approx(float(before), rel=1e-6)
    assert "sharpness/lambda_max" not in results


def fit(optimizer: Callable[[Any], Any], steps: int, every: int, net: str = "tanh", width: int = 8) -> Sharpness:
    """Full-batch training on regression, with the probe on the same samples."""
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y = torch.sin(2 * x[:, :3]) + x[:, 3:6] * x[:, 5:8]
    module = Supervised(
        NETWORKS[net](), lambda out, target: mse_loss(out, target, reduction="sum") / len(out), optimizer
    )
    probe = Sharpness(quantities=("lambda_max",), schedule=EveryNSteps(every))
    trainer(max_epochs=steps, callbacks=[probe]).fit(module, loader(x, y, batch_size=64))
    return probe


def test_ratio_follows_a_schedule_and_sums_groups_at_that_step() -> None:
    def optimizer(parameters: Any) -> Any:
        sgd = torch.optim.SGD(parameters, lr=0.02, momentum=0.5)
        step = torch.optim.lr_scheduler.LambdaLR(sgd, lambda epoch: 1.0 if epoch < 2 else 0.25)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": step, "interval": "step"}}

    probe = fit(optimizer, steps=4, every=1)
    for entry, lr in zip(probe.history, (0.02, 0.02, 0.005, 0.005), strict=True):
        expected = entry["sharpness/lambda_max"] * lr / (2 + 2 * 0.5)
        assert entry["sharpness/stability_ratio"] == pytest.approx(expected, rel=1e-4)


def test_ratio_of_groups_with_different_rates_equals_the_scaled_explicit_hessian() -> None:
    torch.manual_seed(0)
    x, y = classification(inputs=8)
    module = Supervised(
        NETWORKS["tanh"](),
        optimizer=lambda parameters: torch.optim.SGD(
            [{"params": list(parameters)[:2], "lr": 0.3}, {"params": list(module.parameters())[2:], "lr": 0.01}]
        ),
    )
    hessian = explicit_hessian(module, lambda: cross_entropy(module(x), y)).double()
    rates = torch.cat([torch.full((p.numel(),), 0.3 if i < 2 else 0.01) for i, p in enumerate(module.parameters())])
    root = (rates / 2).double().sqrt()
    expected = float(torch.linalg.eigvalsh(root[:, None] * hessian * root)[-1])
    probe = Sharpness(schedule=EveryNSteps(1))
    trainer(max_steps=1, callbacks=[probe]).fit(module, loader(x, y, batch_size=64))
    assert probe.history[0]["sharpness/stability_ratio"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_full_batch_gradient_descent_settles_at_the_edge_of_stability() -> None:
    probe = fit(lambda parameters: torch.optim.SGD(parameters, lr=0.15), steps=1500, every=50)
    ratios = [entry["sharpness/stability_ratio"] for entry in probe.history]
    assert ratios[0] < 0.8
    assert sum(ratios[-10:]) / 10 == pytest.approx(1.0, abs=0.15)
    assert any(entry["sharpness/flag/edge_of_stability"] for entry in probe.history)
    assert not any(entry["sharpness/flag/unstable"] for entry in probe.history)


def test_adam_reports_the_preconditioned_eigenvalue_after_its_first_steps() -> None:
    torch.manual_seed(0)
    x, y = classification(inputs=8)
    adam: list[torch.optim.Optimizer] = []

    def optimizer(parameters: Any) -> Any:
        adam.append(torch.optim.AdamW(parameters, lr=1e-2, betas=(0.8, 0.99)))
        return adam[0]

    module = Supervised(NETWORKS["tanh"](), optimizer=optimizer)
    probe = Sharpness(schedule=[EveryNSteps(1)])
    trainer(max_steps=6, max_epochs=6, callbacks=[probe]).fit(module, loader(x, y, batch_size=64))
    # With beta1 of 0.8 the momentum is a mean over five gradients: before, there is no preconditioner to speak of.
    assert ["sharpness/stability_ratio" in entry for entry in probe.history] == [False] * 5 + [True]
    entry = probe.history[-1]
    ratio = entry["sharpness/lambda_max_preconditioned"] * (1 - 0.8) * 1e-2 / (2 + 2 * 0.8)
    assert entry["sharpness/stability_ratio"] == pytest.approx(ratio, rel=1e-6)
    assert entry["sharpness/lambda_max_preconditioned"] > 0


def test_adam_ratio_equals_the_explicit_preconditioned_hessian() -> None:
    from lightning_probes.callbacks.curvature.stability import stability_of
    from lightning_probes.functional.parameter_vector import to_vector
    from lightning_probes.probing.run.optimizers import optimizer_groups

    torch.manual_seed(0)
    x, y = classification(inputs=8)
    module = Supervised(NETWORKS["tanh"]())
    adam = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(20):
        adam.zero_grad()
        cross_entropy(module(x), y).backward()
        adam.step()
    hessian = explicit_hessian(module, lambda: cross_entropy(module(x), y)).double()
    params = {name: p.detach() for name, p in module.named_parameters()}
    preconditioner = torch.cat(
        [
            ((1 - 0.9**20) * ((adam.state[p]["exp_avg_sq"] / (1 - 0.999**20)).sqrt() + 1e-8)).flatten()
            for p in module.parameters()
        ]
    ).double()
    stability = stability_of(optimizer_groups([adam], module), params)
    assert torch.allclose(stability.inverse_preconditioner.double(), 1 / preconditioner, rtol=1e-4)
    root = (1 / preconditioner).sqrt()
    top = float(torch.linalg.eigvalsh(root[:, None] * hessian * root)[-1])
    assert top * stability.uniform == pytest.approx(top * 1e-2 * 0.1 / 3.8, rel=1e-5)
    assert len(to_vector(params)) == len(preconditioner)


def test_biases_in_front_of_batch_norm_do_not_blow_up_adams_ratio() -> None:
    probe = fit(lambda parameters: torch.optim.Adam(parameters, lr=1e-3), steps=16, every=1, net="batch norm")
    assert all(entry["sharpness/stability_ratio"] < 10 for entry in probe.history[10:])


def test_unknown_optimizer_reports_lambda_max_alone_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    probe = fit(lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3), steps=3, every=1)
    assert "sharpness/lambda_max" in probe.history[-1]
    assert not any("sharpness/stability_ratio" in entry for entry in probe.history)
    assert len([message for message in probe.say.said if "RMSprop" in message]) == 1


def test_later_measurements_need_fewer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_probes.callbacks.curvature import hessian

    spent: list[int] = []
    inner = hessian.lanczos_top_eigenpair

    def counting(*args: Any, **kwargs: Any) -> Any:
        pair = inner(*args, **kwargs)
        spent.append(pair.matvecs)
        return pair

    monkeypatch.setattr(hessian, "lanczos_top_eigenpair", counting)
    x, y = classification(samples=128, inputs=8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    module = Supervised(net, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-6))
    probe = Sharpness(quantities=("lambda_max",), schedule=EveryNSteps(1))
    trainer(max_steps=2, callbacks=[probe]).fit(module, loader(x, y))
    assert spent[1] < spent[0]


def test_eigenvalue_that_did_not_converge_is_said_to_be_a_lower_bound() -> None:
    curvatures = torch.linspace(0, 1, 1000)  # too close to one another to tell the largest in 30 products

    def loss(module: Any, batch: Any) -> Tensor:
        return (curvatures * module.net.weight.flatten().square()).sum() / 2 + 0 * batch[0].sum()

    module = Supervised(nn.Linear(1000, 1, bias=False))
    results = Sharpness(quantities=("lambda_max",), loss_fn=loss).evaluate(module, loader(*classification(inputs=1000)))
    flag, value = results["sharpness/flag/not_converged"], results["sharpness/lambda_max"].value
    assert flag.raised
    assert "lambda_max (relative residual" in flag.message
    assert "a lower bound, and the next measurement goes on from the vector found" in flag.message
    assert 0.99 < value < 1


def test_complex_parameters_are_refused_before_the_first_step_unless_frozen() -> None:
    class Rotation(nn.Module):
        """By a complex weight, kept as such or as a real one."""

        def __init__(self, real: bool) -> None:
            super().__init__()
            weight = torch.randn(8, 3, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0))
            self.weight = nn.Parameter(torch.view_as_real(weight) if real else weight)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
            return (x.to(weight) @ weight).abs()

    x, y = classification(inputs=8)
    fit = trainer(max_steps=2, callbacks=[Sharpness(schedule=EveryNSteps(2, start=1))])
    with pytest.raises(
        MisconfigurationException, match=r"^Sharpness: parameter 'net.weight' is complex.*view_as_complex"
    ):
        fit.fit(Supervised(Rotation(real=False)), loader(x, y))
    assert fit.global_step == 0
    frozen = nn.Sequential(nn.Linear(8, 8), Rotation(real=False).requires_grad_(False))
    for net in (Rotation(real=True), frozen):
        assert "sharpness/lambda_max" in Sharpness().evaluate(Supervised(net), loader(x, y))
