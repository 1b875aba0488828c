"""Every probe, alone and with the others, on every way of training: in every bit as without it.

`tests.ways` has the rows, `tests.tester.fingerprint` says what is compared. The table in the README is what this file
found: `pytest tests/test_matrix.py --write-table` writes it there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.checkpoint import checkpoint

from lightning_probes import AtFitEnd, EveryNSteps, GradientNorms, Probe
from lightning_probes.probing.checks import blaming_reentrant_checkpoints
from lightning_probes.testing.zoo import Fit
from tests.tester import EVERY, Flat, assert_same, fit, probe, public_name
from tests.ways import ISOLATIONS, WAYS, modules, network

ALL = "all together"
HEADLINES = {
    "fisher": "fisher/trace", "interpolation": "interpolation/max_rise", "cka": "cka/to_init_mean",
    "sharpness": "sharpness/lambda_max", "connectivity": "connectivity/barrier", "plane": "plane/nonconvexity",
    "dropout": "dropout/rise", "regime": "regime/regime", "linear": "linear/best",
    "gradient_flow": "gradient_flow/decades", "head2toe": "head2toe/gap", "residual": "residual/ratio_median",
    "attention": "attention/mean",
}  # fmt: skip

# Alone on every way: between them these make every kind of pass that there is. The others make passes of the same
# kinds, at other parameters, and are alone on the ways that other parameters could disturb.
ON_EVERY_WAY = ("fisher", "interpolation", "cka", "sharpness")
TELLING = (
    "dropout",  # random numbers in a pass
    "BatchNorm",  # buffers that a pass writes to, which most points re-estimate
    "a dataset with generators and a counter",  # samples that are read again
    "gradient accumulation",  # gradients that a path or a Hessian-vector product could add to
    "outputs collected for the end of the epoch",  # what `training_step` keeps of each call
    "`EMAWeightAveraging`",  # weights that are exchanged around the end of the fit
    "`BackboneFinetuning`",  # parameters that do not train yet, and are in none of the directions
    "tied weights",  # one parameter under two names, for states by name
    "`bf16-mixed`",  # passes that need another precision
    "a compiled submodule",  # passes that leave the compiler
    "attention, skip connections and BatchNorm",  # operations that are watched in a pass, and fused kernels
)
CELLS = [
    (way, column)
    for way in WAYS
    for column in (*EVERY, ALL)
    if column == ALL or (column not in WAYS[way].refused_by and (column in ON_EVERY_WAY or way in TELLING))
]
# The columns of the table: the kinds that must all be equal where they were tried alone.
HEADINGS = {
    **{f"`{public_name(EVERY[kind])}`": (kind,) for kind in ON_EVERY_WAY},
    "each other probe": tuple(kind for kind in EVERY if kind not in ON_EVERY_WAY),
    ALL: (ALL,),
}

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->"

equal: set[tuple[str, str]] = set()  # the cells compared so far in which nothing differed


def measuring(way: str, *kinds: str, **arguments: Any) -> list[Probe]:
    """Probes that measure at the start, in the middle and at the end, on little data."""
    when: dict[str, Any] = {"schedule": [EveryNSteps(3, stop=3), AtFitEnd()], "num_samples": 16}
    small: dict[str, Any] = {
        "interpolation": {"num_alphas": 2}, "connectivity": {"num_alphas": 2}, "dropout": {"halves": 1},
    }  # fmt: skip
    return [
        probe(kind, **{**when, **small.get(kind, {}), **WAYS[way].told.get(kind, {}), **arguments}) for kind in kinds
    ]


@cache
def without_probes(way: str) -> Flat:
    with TemporaryDirectory() as directory:
        return WAYS[way].train([], Path(directory))


@pytest.mark.parametrize(("way", "column"), CELLS)
def test_training_is_in_every_bit_as_without_probes(way: str, column: str, tmp_path: Path) -> None:
    kinds = [kind for kind in EVERY if kind not in WAYS[way].refused_by] if column == ALL else [column]
    probes = measuring(way, *kinds)
    monitors = [GradientNorms(schedule=EveryNSteps(1))] if column == ALL else []

    found = WAYS[way].train([*probes, *monitors], tmp_path)

    assert_same(found, without_probes(way))
    for each in probes:
        assert [entry["step"] for entry in each.history] == list(WAYS[way].steps)
        assert all(HEADLINES[each.name] in entry for entry in each.history)
    equal.add((way, column))


@pytest.mark.filterwarnings("ignore:.* failed and was left out")
@pytest.mark.parametrize("way", WAYS)
def test_row_fails_without_its_isolation(way: str, tmp_path: Path) -> None:
    expected = without_probes(way)

    with ISOLATIONS[WAYS[way].isolation]():
        found = WAYS[way].train(measuring(way, *ON_EVERY_WAY, on_error="warn"), tmp_path)

        with pytest.raises(AssertionError, match="training was disturbed"):
            assert_same(found, expected)


def test_isolation_taken_out_is_back_afterwards(tmp_path: Path) -> None:
    for isolation in ISOLATIONS.values():
        with isolation():
            pass

    assert_same(WAYS["dropout"].train(measuring("dropout", *ON_EVERY_WAY), tmp_path), without_probes("dropout"))


def reentrant() -> Any:
    return network(lambda: modules.Checkpointed(use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", ["fisher", "sharpness", "regime"])
def test_reentrant_checkpointing_is_refused_for_derivatives_before_the_first_step(kind: str) -> None:
    steps: list[int] = []

    def drive(trainer: L.Trainer, made: Fit) -> None:
        try:
            trainer.fit(made.module, made.train)
        finally:
            steps.append(trainer.global_step)

    with pytest.raises(MisconfigurationException, match="use_reentrant=False"):
        fit(reentrant(), [probe(kind)], drive=drive)
    assert steps == [0]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", ["interpolation", "cka"])
def test_reentrant_checkpointing_is_fine_where_nothing_is_differentiated(kind: str) -> None:
    measured = probe(kind)
    fit(reentrant(), [measured])
    assert measured.history


def test_derivative_through_a_reentrant_checkpoint_is_explained() -> None:
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(MisconfigurationException, match="use_reentrant=False"), blaming_reentrant_checkpoints():
        torch.autograd.grad(checkpoint(torch.sum, weight, use_reentrant=True), weight)
    with pytest.raises(RuntimeError, match="something else"), blaming_reentrant_checkpoints():
        raise RuntimeError("something else")


def test_table_in_the_readme_is_what_was_found(request: pytest.FixtureRequest) -> None:
    cells = [item for item in request.session.items if item.name.startswith("test_training_is_in_every_bit")]
    if len(cells) < len(CELLS):  # by -k or by name: a table of the rest would be wrong
        pytest.skip("only a part of the matrix was run")

    before, _, rest = README.read_text().partition(BEGIN)
    found, marker, after = rest.partition(END)
    assert marker, f"README.md has no {BEGIN.strip()} and {END}"
    if request.config.getoption("--write-table", default=False):
        README.write_text(f"{before}{BEGIN}{table()}{END}{after}")
    else:
        assert found == table()


def table() -> str:
    lines = [
        f"| way of training | {' | '.join(HEADINGS)} |",
        f"|---|{':-:|' * len(HEADINGS)}",
        *(f"| {way} | {' | '.join(mark(way, kinds) for kinds in HEADINGS.values())} |" for way in WAYS),
    ]
    return "\n".join(lines) + "\n"


def mark(way: str, kinds: tuple[str, ...]) -> str:
    tried = {(way, kind) for kind in kinds} & set(CELLS)
    return "✓" if tried and tried <= equal else ""
