"""What a measurement leaves to the next one is in the checkpoint, so that a break changes no number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_probes import Curve, EveryNSteps, LayerCKA, Probe, Result, Scalar
from lightning_probes.probing.view import ModelView
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import loader
from lightning_probes.testing.zoo.modules import cnn
from tests.callbacks.paths.sibling import ToSibling
from tests.resumable import Adaptive, Repeated, begin, go_on, measured, resumable
from tests.tester import fit, probe


class Counting(Probe):
    """Counts its measurements, and may fail in one of them."""

    def __init__(self, fails_at: int = -1, **arguments: Any) -> None:
        super().__init__(name="counting", schedule=EveryNSteps(1), data="train", num_samples=8, **arguments)
        self.fails_at = fails_at

    def measure(self, view: ModelView) -> Iterator[Result]:
        self.carried["count"] = self.carried.get("count", torch.tensor(0)) + 1
        if view.step == self.fails_at:
            raise ZeroDivisionError
        yield Scalar("count", float(self.carried["count"]))


def counts(each: Probe) -> list[int]:
    return [int(row["counting/count"]) for row in each.history]


def test_a_probe_goes_on_after_a_break_with_what_it_carried(tmp_path: Path) -> None:
    checkpoint, resumed = begin(tmp_path, [Counting()]), Counting()
    go_on(tmp_path, checkpoint, [resumed])
    assert counts(resumed) == list(range(1, 16))


def test_a_new_run_and_an_evaluation_begin_with_nothing_carried(tmp_path: Path) -> None:
    again = Counting()
    for _ in range(2):
        run = fit(resumable, [again], tmp_path, max_steps=3)
        assert counts(again) == [1, 2, 3]
    found = again.evaluate(run.module, run.fit.train)["counting/count"]
    assert isinstance(found, Scalar)
    assert (found.value, int(again.carried["count"])) == (1, 3)


def test_a_measurement_that_fails_leaves_it_as_it_was() -> None:
    failing = Counting(fails_at=2, on_error="warn")
    with pytest.warns(UserWarning, match="failed and was left out"):
        fit(resumable, [failing])
    assert [row["step"] for row in failing.history] == [0, 1, 3, 4]
    assert counts(failing) == [1, 2, 3, 4]


class InPlace(Counting):
    """Writes to what it carries, and may run out of memory the first time it does so in a step."""

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        return True

    def measure(self, view: ModelView) -> Iterator[Result]:
        self.carried.setdefault("count", torch.tensor(0)).add_(1)
        if view.step == self.fails_at and view.batches()[0].size > 2:
            raise torch.OutOfMemoryError("out of memory")
        yield Scalar("count", float(self.carried["count"]))


def test_an_attempt_that_has_written_to_it_before_memory_ran_out_leaves_it_as_it_was() -> None:
    halving = InPlace(fails_at=2, micro_batch_size=4)
    fit(resumable, [halving], max_steps=5)
    assert counts(halving) == [1, 2, 3, 4, 5]


def edited(checkpoint: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    for state in content["callbacks"].values():
        edit(state)
    torch.save(content, checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    "edit",
    [
        lambda state: [state.pop(key, None) for key in ("carried", "drawn")],
        lambda state: state.get("carried", {}).update(lambda_max=torch.ones(3, dtype=torch.bfloat16)),
    ],
    ids=["of an older version", "of another shape"],
)
def test_without_an_eigenvector_that_fits_lanczos_starts_anew(tmp_path: Path, edit: Any) -> None:
    checkpoint = edited(begin(tmp_path, [probe("sharpness")]), edit)
    resumed = probe("sharpness")
    go_on(tmp_path, checkpoint, [resumed])
    assert [row["step"] for row in resumed.history] == [2, 15]
    assert resumed.history[-1]["sharpness/flag/not_converged"] == 0


def test_a_checkpoint_holds_two_bytes_for_each_parameter_and_eigenvector(tmp_path: Path) -> None:
    go_on(tmp_path, None, [probe("sharpness", schedule=EveryNSteps(1))])
    carried = torch.load(tmp_path / "step=14.ckpt", weights_only=True)["callbacks"]["sharpness"]["carried"]
    parameters = sum(p.numel() for p in resumable().module.parameters())
    assert carried.keys() == {"lambda_max", "lambda_max_preconditioned"}
    assert {(vector.nbytes, vector.device.type) for vector in carried.values()} == {(2 * parameters, "cpu")}


def opens_late() -> Fit:
    """A network whose middle layer gives the same for every sample until it has been trained."""
    net = cnn()
    late = nn.Linear(3, 3)
    nn.init.zeros_(late.weight)
    return Fit(Adaptive(nn.Sequential(net, late)), loader(Repeated(), shuffle=False))


def test_a_resumed_run_compares_the_layers_that_it_compared_before(tmp_path: Path) -> None:
    def compares() -> LayerCKA:
        return LayerCKA(num_samples=16, schedule=EveryNSteps(5))

    unbroken, resumed = compares(), compares()
    go_on(tmp_path / "unbroken", None, [unbroken], opens_late)
    go_on(tmp_path, begin(tmp_path, [compares()], opens_late), [resumed], opens_late)
    assert "net.1" not in unbroken.results["cka/layers"].row_labels  # type: ignore[union-attr]
    assert measured(resumed) == measured(unbroken)


def test_a_resumed_run_matches_units_from_the_order_that_it_found_last(tmp_path: Path) -> None:
    def matches() -> ToSibling:
        return ToSibling(align="weights", num_samples=16, schedule=EveryNSteps(1))

    unbroken, resumed = matches(), matches()
    go_on(tmp_path / "unbroken", None, [unbroken])
    go_on(tmp_path, begin(tmp_path, [matches()]), [resumed])
    assert measured(resumed) == measured(unbroken)
    orders = {key: order for key, order in unbroken.carried.items() if key.startswith("order of ")}
    assert len(orders) == 2
    assert all(torch.equal(order, resumed.carried[key]) for key, order in orders.items())


class Tight(Adaptive):
    """Out of memory once, at its third evaluation of a whole micro-batch."""

    def __init__(self, net: nn.Module, full: list[bool]) -> None:
        super().__init__(net)
        self.full = full

    def forward(self, x: Any) -> Any:
        if not self.training and len(x) == 8 and self.full and self.full.pop():
            raise torch.OutOfMemoryError
        return super().forward(x)


def test_micro_batches_that_were_halved_stay_so_after_a_break(tmp_path: Path) -> None:
    """The labels that a micro-batch is given depend on which it is."""

    def make(out_of_memory: bool) -> Callable[[], Fit]:
        return lambda: Fit(Tight(cnn(), [out_of_memory]), loader(Repeated(), shuffle=False))

    def measures() -> Probe:
        return probe("fisher", schedule=EveryNSteps(5))

    unbroken, resumed = measures(), measures()
    go_on(tmp_path / "unbroken", None, [unbroken], make(out_of_memory=True))
    checkpoint = begin(tmp_path, [measures()], make(out_of_memory=True))
    go_on(tmp_path, checkpoint, [resumed], make(out_of_memory=False))
    assert measured(resumed) == measured(unbroken)
    assert resumed.settings["train_micro_batch_size"] == 4


class Tags(L.LightningModule):
    """Label 0 is padding, which the loss leaves out; it gains another term after seven steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)

    def training_step(self, batch: Any, _: int) -> Tensor:
        tokens, tags = batch
        loss = F.cross_entropy(self(tokens).flatten(0, 1), tags.flatten(), ignore_index=0)
        return loss + 0.1 * self.net[1].weight.square().sum() * (self.global_step >= 7)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def tagged() -> Fit:
    tokens = (torch.arange(48).view(8, 6) % 5).repeat(5, 1)  # batches alike: a resumed epoch begins anew
    return Fit(Tags(), loader(TensorDataset(tokens, tokens.flip(1)), shuffle=False))


@pytest.mark.parametrize("kind", ["fisher", "interpolation"])
def test_a_resumed_run_reads_its_targets_as_it_did_before(kind: str, tmp_path: Path) -> None:
    unbroken, resumed = probe(kind), probe(kind)
    go_on(tmp_path / "unbroken", None, [unbroken], tagged)
    go_on(tmp_path, begin(tmp_path, [probe(kind)], tagged), [resumed], tagged)
    assert measured(resumed) == measured(unbroken)
    assert not any("makes them equal" in said for said in resumed.say.said)
    for key, curve in unbroken.results.items():
        if isinstance(curve, Curve):
            np.testing.assert_array_equal(resumed.results[key].y, curve.y)  # type: ignore[union-attr]
