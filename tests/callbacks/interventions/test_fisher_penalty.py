"""The penalty is what it would be in `training_step`, and nothing where it is off or over."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from lightning_probes import EveryNSteps, FisherPenalty, FisherTrace, GradientNorms, Sharpness
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.callbacks.interventions.written import C, Written, made
from tests.resumable import begin, go_on, measured, resumable
from tests.tester import assert_same, fingerprint, fit


def weights(run: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in run.module.parameters()])


def furthest(run: Any, other: Any) -> float:
    return float((weights(run) - weights(other)).abs().max())


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped by norm": {"gradient_clip_val": 0.05},
    "clipped by value": {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    "accumulated": {"accumulate_grad_batches": 2, "max_epochs": 4},
    "accumulated and clipped": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05, "max_epochs": 4},
    "float64": {"precision": "64-true"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bn", [False, True], ids=["", "BatchNorm"])
def test_at_every_step_it_is_the_term_written_into_training_step(way: str, bn: bool) -> None:
    found = fit(partial(made, bn=bn), [FisherPenalty(C, every=1)], **WAYS[way])
    written, plain = fit(partial(made, Written, bn), **WAYS[way]), fit(partial(made, bn=bn), **WAYS[way])
    assert furthest(written, plain) > 5e-4
    assert furthest(found, written) < 1e-3 * furthest(written, plain)


def test_in_bfloat16_it_is_that_term_up_to_rounding() -> None:
    how = {"precision": "bf16-mixed"}
    found, written, plain = (
        fit(make, callbacks, **how)
        for make, callbacks in ((made, [FisherPenalty(C, every=1)]), (partial(made, Written), []), (made, []))
    )
    assert furthest(found, written) < 0.05 * furthest(written, plain)  # bfloat16 has 8 bits


class Scaled(MixedPrecision):
    """The gradient scaler of float16, on a CPU."""

    def __init__(self, scale: float) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


class Moved(Supervised):
    def __init__(self, fused: bool) -> None:
        super().__init__(mlp())
        self.fused = fused

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, fused=self.fused)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_does_not_change_it_even_if_the_optimizer_unscales(fused: bool) -> None:
    ends = [
        fit(lambda: Fit(Moved(fused), loader(labelled(4))), callbacks, plugins=Scaled(scale))
        for scale in (1.0, 2.0**10)
        for callbacks in ([FisherPenalty(C, every=2)], [])
    ]
    moved = furthest(ends[0], ends[1])
    assert moved > 1e-3
    assert furthest(ends[0], ends[2]) < 0.05 * moved  # float16 rounds the gradients of the loss


@pytest.mark.parametrize("fused", [False, True])
def test_the_share_is_without_the_factor_of_a_scaler(fused: bool) -> None:
    shares = []
    for scale in (1.0, 2.0**8):
        penalty = FisherPenalty(C)
        fit(lambda: Fit(Moved(fused), loader(labelled(4))), [penalty], plugins=Scaled(scale), max_steps=1)
        shares.append(penalty.history[0]["fisher_penalty/share"])
    assert shares[0] > 0
    assert shares[1] == pytest.approx(shares[0], rel=0.02)


class Skips(Supervised):
    """Has no loss at steps 2 to 4."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return None if batch_idx in (2, 3, 4) else super().training_step(batch, batch_idx)


def test_a_step_without_gradients_remains_one() -> None:
    seen: list[Any] = []

    class Notes(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            seen.append((trainer.global_step, any(p.grad is not None for p in module.parameters())))

    make = lambda: Fit(Skips(mlp()), loader(labelled(4)))  # noqa: E731
    fit(make, [FisherPenalty(C, every=1), Notes()], max_epochs=1)
    assert [step for step, has in seen if not has]
    assert [has for _, has in seen] == [step not in (2, 3, 4) for step, _ in seen]


@pytest.mark.parametrize("every", [1, 3])
def test_coefficient_0_leaves_training_bit_identical_and_still_reports(every: int) -> None:
    off = FisherPenalty(0, every=every, schedule=EveryNSteps(2))
    make = partial(made, bn=True, dropout=0.3)
    assert_same(fingerprint(fit(make, [off])), fingerprint(fit(make)))
    assert all(row["fisher_penalty/value"] > 0 for row in off.history)
    assert {row["fisher_penalty/share"] for row in off.history} == {0}


@pytest.mark.parametrize(("until", "steps"), [(7, 7), (0.5, 8)])
def test_from_until_on_training_is_plain_training_from_that_state(until: float, steps: int, tmp_path: Path) -> None:
    """15 steps in all."""
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    how: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": True}
    found = fit(resumable, [FisherPenalty(C, every=3, until=until), saves], tmp_path, **how)
    expected, beyond = (
        fit(resumable, [], tmp_path / "plain", ckpt_path=tmp_path / f"step={step}.ckpt", **how)
        for step in (steps, steps - 2)
    )
    state = [run.trainer.optimizers[0].state_dict()["state"] for run in (found, expected)]
    assert torch.equal(weights(found), weights(expected))
    assert all(torch.equal(state[0][i]["exp_avg"], state[1][i]["exp_avg"]) for i in state[0])
    assert not torch.equal(weights(found), weights(beyond))


def test_a_run_resumed_between_two_refreshes_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    unbroken, broken, resumed = (FisherPenalty(C, every=5) for _ in range(3))  # the break is after step 7
    expected = go_on(tmp_path / "unbroken", None, [unbroken])
    found = go_on(tmp_path / "broken", begin(tmp_path / "broken", [broken]), [resumed])
    assert torch.equal(weights(found), weights(expected))
    assert measured(resumed) == measured(unbroken)


def test_it_is_refreshed_every_so_many_steps_and_the_term_is_used_again_in_between() -> None:
    seen: list[Tensor] = []

    class Notes(FisherPenalty):
        def intervene(self, step: Any) -> Any:
            yield from super().intervene(step)
            seen.append(torch.cat([term.flatten() for term in self.kept.values()]))

    fit(made, [Notes(C, every=4)], max_epochs=2)
    assert [torch.equal(a, b) for a, b in pairwise(seen)] == [(i + 1) % 4 != 0 for i in range(9)]


def exact_trace(module: Any, inputs: Tensor) -> float:
    total = 0.0
    for each in inputs:
        logits = module(each[None])
        chances = logits.detach().softmax(-1)[0]
        for label, chance in enumerate(chances):
            slopes = torch.autograd.grad(-logits.log_softmax(-1)[0, label], [*module.parameters()], retain_graph=True)
            total += float(chance) * sum(float(slope.square().sum()) for slope in slopes)
    return total / len(inputs)


def of_size(size: int) -> Fit:
    """The same samples each time."""
    fitted = made()
    return Fit(fitted.module, torch.utils.data.DataLoader(fitted.train.dataset, size))


@pytest.mark.parametrize("size", [4, 16])
def test_its_expectation_is_the_trace_whatever_the_batch_size(size: int) -> None:
    draws = []
    for seed in range(100):
        penalty = FisherPenalty(0, seed=seed)
        fit(partial(of_size, size), [penalty], max_steps=1)
        draws.append(penalty.history[0]["fisher_penalty/value"])
    fresh = fit(partial(of_size, size), max_steps=0)
    expected = exact_trace(fresh.module, next(iter(of_size(size).train))[0])
    assert abs(float(np.mean(draws)) - expected) < 4 * float(np.std(draws)) / len(draws) ** 0.5


def test_norm_layers_are_left_out_of_the_trace_where_asked() -> None:
    values = []
    for exclude in (False, True):
        penalty = FisherPenalty(C, exclude_norm=exclude)
        fit(partial(made, bn=True), [penalty], max_steps=1)
        values.append(penalty.history[0]["fisher_penalty/value"])
    assert 0 < values[1] < values[0]


def test_dropout_differs_from_refresh_to_refresh() -> None:
    """With the same mask each time it would train one half of the network alone."""
    masks: list[Tensor] = []

    class Notes(Supervised):
        def forward(self, inputs: Any) -> Any:
            hidden = self.net[0](inputs)
            kept = self.net[3](torch.ones_like(hidden))
            masks.append(kept.detach()) if torch.is_grad_enabled() else None
            return self.net[4](hidden * kept)

    class Twins(FisherPenalty):
        def intervene(self, step: Any) -> Any:
            masks.clear()
            yield from super().intervene(step)
            found.extend(masks)

    found: list[Tensor] = []
    fit(lambda: made(Notes, dropout=0.5), [Twins(C, every=1)], max_steps=3)
    assert len(found) == 3
    assert not any(torch.equal(a, b) for a, b in pairwise(found))


class Augments(Supervised):
    """Changes the batch on its way to the device."""

    times = 0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        type(self).times += 1
        return [batch[0] + 100.0 * self.times, *batch[1:]]


def test_the_batch_is_the_one_that_was_trained_on_and_is_not_transferred_again() -> None:
    seen: list[float] = []

    class Notes(FisherPenalty):
        def intervene(self, step: Any) -> Any:
            with step.look() as view:
                hook = view.module.register_forward_pre_hook(lambda _, given: seen.append(float(given[0].max())))
                view.detached.logits(view.probe_set().first)
                hook.remove()
            seen.append(float(step.batch[0].max()))
            yield from super().intervene(step)

    Augments.times = 0
    fit(lambda: made(Augments), [Notes(C)], max_steps=1, num_sanity_val_steps=0)
    assert seen[0] == seen[-1] < 150


class TwoOptimizers(Supervised):
    """The layers have an optimizer each, stepped by hand."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            loss = self.loss_of(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.05) for layer in (self.net[0], self.net[4])]


def test_each_of_several_optimizers_gets_the_term_of_its_own_parameters() -> None:
    found, plain = (fit(lambda: made(TwoOptimizers), callbacks, max_steps=8) for callbacks in ([FisherPenalty(C)], []))
    for a, b in zip(found.module.parameters(), plain.module.parameters(), strict=True):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("first", [True, False], ids=["behind it", "before it"])
def test_probes_beside_it_see_what_they_would_see(first: bool) -> None:
    def others() -> list[Any]:
        each = [FisherTrace(num_samples=16, schedule=EveryNSteps(2)), Sharpness(num_samples=16, name="sharp")]
        return [*each, GradientNorms(schedule=EveryNSteps(1))]

    expected, found, penalty = others(), others(), [FisherPenalty(0, every=1)]
    fit(made, expected)
    fit(made, [*penalty, *found] if first else [*found, *penalty])
    assert [measured(each) for each in found] == [measured(each) for each in expected]


def test_a_monitor_before_it_sees_the_gradient_of_the_loss_and_one_behind_it_the_sum() -> None:
    before, behind, alone = (GradientNorms(name=name) for name in ("before", "behind", "alone"))
    fit(made, [before, FisherPenalty(10.0), behind], max_steps=1)
    fit(made, [alone], max_steps=1)
    norm = alone.history[0]["alone/global_norm"]
    assert before.history[0]["before/global_norm"] == norm
    assert behind.history[0]["behind/global_norm"] > 1.5 * norm


def test_it_names_itself_in_the_log_and_in_the_config_of_the_run() -> None:
    penalty = FisherPenalty(C, until=0.5)
    fit(made, [penalty])
    assert "changes training on purpose" in penalty.say.said
    expected = {"kind": "intervention", "changes_training": True, "coefficient": C, "every": 10, "until": 0.5}
    assert expected.items() <= penalty.settings.items()
    assert {"fisher_penalty/value", "fisher_penalty/share"} <= penalty.history[0].keys()


def test_nothing_is_reported_or_kept_after_until() -> None:
    penalty = FisherPenalty(C, every=2, until=4, schedule=EveryNSteps(2))
    fit(made, [penalty])
    assert [row["step"] for row in penalty.history] == [0, 2]
    assert not penalty.kept
