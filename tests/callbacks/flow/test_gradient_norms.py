"""GradientNorms reads the gradients of training as they are, once per event, whatever drives the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_probes import AtFitEnd, EveryNSteps, GradientNorms
from lightning_probes.callbacks.flow import steps
from lightning_probes.testing import Check, cases
from lightning_probes.testing.zoo import CASES, Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.tester import fit


class Reads(L.Callback):
    """What a callback of the user's own would read of the first step, for one optimizer."""

    def __init__(self, place: int = 0) -> None:
        self.place = place
        self.gradients: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}

    def own(self, trainer: Any, module: Any) -> dict[str, Any]:
        updated = {id(p) for group in trainer.optimizers[self.place].param_groups for p in group["params"]}
        return {name: p for name, p in module.named_parameters() if id(p) in updated and p.requires_grad}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        own = self.own(trainer, pl_module)
        if self.gradients or optimizer is not trainer.optimizers[self.place]:
            return
        self.before = {name: p.detach().clone() for name, p in own.items()}
        self.gradients = {name: p.grad.to_dense().clone() for name, p in own.items() if p.grad is not None}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.gradients and not self.after:
            self.after = {name: p.detach().clone() for name, p in self.own(trainer, pl_module).items()}

    @property
    def expected(self) -> dict[str, float]:
        before, after = (torch.cat([p.flatten() for p in each.values()]) for each in (self.before, self.after))
        gradient = torch.cat([g.flatten() for g in self.gradients.values()])
        return {
            "global_norm": float(gradient.norm()),
            "update_ratio": float((after - before).norm() / before.norm()),
            "zeros": float((gradient == 0).float().mean()),
        }


def make(**arguments: Any) -> Fit:
    return Fit(Supervised(mlp(), **arguments), loader(labelled(4)))


class Keeps(GradientNorms):
    """Its last results, as they are."""

    def after_step(self, moment: Any) -> Any:
        self.last = [*super().after_step(moment)]
        return self.last


def first(monitor: GradientNorms) -> dict[str, float]:
    return {key.removeprefix("gradients/"): value for key, value in monitor.history[0].items()}


def read(found: dict[str, float], prefix: str = "") -> dict[str, float]:
    return {key: found[prefix + key] for key in ("global_norm", "update_ratio", "zeros")}


class Frozen(Supervised):
    def __init__(self) -> None:
        super().__init__(mlp())
        self.net[0].weight.requires_grad_(False)


class Words(L.LightningModule):
    """Rows of an embedding that a batch does not use have no entry in a sparse gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 3, sparse=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.words(batch[0].abs().long()).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Scaled(MixedPrecision):
    """The gradient scaler of float16, on a CPU."""

    def __init__(self, scale: float = 2.0**10) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


class WithAdam(Supervised):
    def __init__(self, fused: bool) -> None:
        super().__init__(mlp())
        self.fused = fused

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2, fused=self.fused)


FITS: dict[str, tuple[Callable[[], Fit], dict[str, Any]]] = {
    "plain": (make, {}),
    "accumulated and clipped": (make, {"accumulate_grad_batches": 2, "gradient_clip_val": 1e-3}),
    "frozen": (lambda: Fit(Frozen(), loader(labelled(4))), {}),
    "sparse": (lambda: Fit(Words(), loader(labelled(4))), {}),
    "scaled": (lambda: Fit(WithAdam(False), loader(labelled(4))), {"plugins": Scaled()}),
    "bf16-mixed": (make, {"precision": "bf16-mixed"}),
    "double": (make, {"precision": "64-true"}),
}


@pytest.mark.parametrize("case", FITS)
def test_the_numbers_are_those_of_training_s_own_gradients(case: str) -> None:
    how, arguments = FITS[case]
    monitor, reads = GradientNorms(), Reads()
    fit(how, [monitor, reads], **arguments)
    assert read(first(monitor)) == pytest.approx(reads.expected, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_a_scaled_loss_have_the_size_of_the_loss_itself(fused: bool) -> None:
    sizes = []
    for scale in (1.0, 2.0**8):
        monitor = GradientNorms()
        fit(lambda: Fit(WithAdam(fused), loader(labelled(4))), [monitor], plugins=Scaled(scale))
        sizes.append(first(monitor)["global_norm"])
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)  # float16 rounds both


def test_the_heatmap_and_the_layers_add_up_to_the_whole() -> None:
    monitor = Keeps()
    fit(make, [monitor])
    found = {each.key: each for each in monitor.last}
    norms = [found[f"layer/{layer}"].value for layer in ("net/0", "net/2")]
    assert math.hypot(*norms) == pytest.approx(found["global_norm"].value)
    assert found["layers"].row_labels == ("net/0", "net/2")
    assert 10 ** found["layers"].values[:, 0] == pytest.approx(norms)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_the_factor_of_clipping_is_the_norm_after_it_over_the_norm_before(clip: float) -> None:
    monitor = GradientNorms()
    fit(make, [monitor], gradient_clip_val=clip)
    found = first(monitor)
    assert found["clip_factor"] == pytest.approx(min(1.0, clip / found["global_norm"]), rel=1e-3)


def test_without_clipping_it_has_no_factor() -> None:
    monitor = GradientNorms()
    fit(make, [monitor])
    assert "clip_factor" not in first(monitor)


def test_each_optimizer_has_its_own_parameters() -> None:
    monitor, one, other = GradientNorms(schedule=EveryNSteps(1)), Reads(0), Reads(1)
    fit(CASES["gan"].make, [monitor, one, other])
    found = first(monitor)
    for place, reads in enumerate((one, other)):
        assert read(found, f"optimizer/{place}/") == pytest.approx(reads.expected, rel=1e-5)
    norms = [found[f"optimizer/{place}/global_norm"] for place in (0, 1)]
    assert found["global_norm"] == pytest.approx(math.hypot(*norms))
    assert {key.split("/")[1] for key in found if key.startswith("layer/")} == {"generator", "discriminator"}


class Breaks(Supervised):
    """The loss has no finite gradient in its last layer from the third batch on."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss + self.net[2].weight.sum() * (math.inf if batch_idx >= 2 else 0.0)


def test_a_layer_whose_gradient_is_not_finite_is_named() -> None:
    monitor = GradientNorms(schedule=EveryNSteps(2), per_layer=False)
    with pytest.warns(UserWarning, match=r"not finite: gradients/global_norm, .*gradients/layer/net/2"):
        fit(lambda: Fit(Breaks(mlp()), loader(labelled(4))), [monitor])
    assert [row["gradients/flag/nonfinite"] for row in monitor.history] == [0, 1, 1]
    assert not any("layer" in key for key in monitor.history[0])


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_no_reason_to_stop(fused: bool) -> None:
    class Overflows(WithAdam):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss * (math.inf if batch_idx == 2 else 1.0)

    monitor = GradientNorms(schedule=EveryNSteps(1), on_flag="stop")
    run = fit(lambda: Fit(Overflows(fused), loader(labelled(4))), [monitor], plugins=Scaled())
    skipped = [row["gradients/flag/skipped"] for row in monitor.history]
    assert skipped == [0, 0, 1, *[0] * (len(skipped) - 3)]
    assert len(skipped) == run.trainer.num_training_batches
    assert not any(row["gradients/flag/nonfinite"] for row in monitor.history)
    assert "gradients/global_norm" not in monitor.history[2]


class Waits(TorchDispatchMode):
    """Counts reads of single numbers, for which a device would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default or func is torch.ops.aten.nonzero.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["plain", "accumulated and clipped", "scaled", "sparse"])
def test_an_event_waits_for_the_device_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, transfers = Waits(), []

    class Watched(GradientNorms):
        def before_step(self, moment: Any) -> Any:
            with waits:
                return super().before_step(moment)

        def after_step(self, moment: Any) -> Any:
            with waits:
                return [*super().after_step(moment)]

    on_host = steps.on_host
    monkeypatch.setattr(steps, "on_host", lambda values: (transfers.append(len(values)), on_host(values))[1])
    monitor = Watched(schedule=EveryNSteps(1))
    how, arguments = FITS[case]
    fit(how, [monitor], **arguments)
    assert len(transfers) == len(monitor.history) > 1
    assert waits.count == 0


def test_nothing_is_kept_between_events() -> None:
    monitor = GradientNorms()
    fit(make, [monitor])
    assert not monitor._begun


@pytest.mark.parametrize("check", cases(GradientNorms))
def test_it_keeps_the_promises(check: Check) -> None:
    check()


def test_the_end_of_a_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule must be"):
        GradientNorms(schedule=AtFitEnd())
