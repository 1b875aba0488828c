"""The benchmark keeps its books: ratios, references, tables, the check. Tiny sizes, no time is judged."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import regression, tasks
from benchmarks.budgets import accounting, passes, two_processes, units
from benchmarks.cells import apart, timed
from benchmarks.command import cells, is_chosen, main, parser
from benchmarks.models import MODELS, cross_entropy, samples_for
from benchmarks.ours import Ready
from benchmarks.scaling import exponent
from benchmarks.table import BEGIN, END, Results, machine, number, render, write
from benchmarks.tasks.lambda_max import tuned
from benchmarks.timing import Timing, alternate, seconds
from benchmarks.work import Lit, Work, load
from lightning_probes import InitInterpolation, Scalar

SCALE = 1 / 64  # 8 samples


@pytest.fixture(autouse=True)
def trained_for_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.work.TRAINING_STEPS", dict.fromkeys(MODELS, 3))


def tiny(name: str, directory: Path, many_passes: bool = False, scale: float = SCALE) -> Work:
    return load(name, directory, many_passes, scale)


def fails() -> dict[str, Any]:
    raise ValueError("no such matrix\nand more")


def hangs() -> dict[str, Any]:
    time.sleep(60)
    return {}


def dies() -> dict[str, Any]:
    import os

    os._exit(7)


def returns(value: int) -> dict[str, Any]:
    return {"value": value, "threads": torch.get_num_threads()}


def test_ratio_and_quartiles_are_those_of_single_rounds() -> None:
    timing = Timing(plain=[1.0, 2.0, 100.0], tool=[3.0, 4.0, 5.0])
    assert timing.ratio == 2.0
    slower = Timing(plain=[1.0, 1.0, 2.0, 2.0, 2.0], tool=[1.1, 1.1, 1.1, 2.2, 2.2])  # from the third round on
    assert slower.ratio == pytest.approx(1.1)
    assert slower.quartiles == pytest.approx((1.1, 1.1))
    assert timing.quartiles == (pytest.approx((0.05 + 2) / 2), pytest.approx((2 + 3) / 2))


def test_alternation_changes_who_goes_first() -> None:
    order: list[str] = []
    timing = alternate(lambda: order.append("a"), lambda: order.append("b"), rounds=3, at_least=0)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert len(timing.plain) == len(timing.tool) == 3


def test_rows_measured_otherwise_do_not_get_into_one_table(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Results(machine=machine(threads=4, clock="wall")).save(path)
    with pytest.raises(SystemExit, match="threads 4, now 1, clock wall, now cpu"):
        main(["--tasks", "idle", "--threads", "1", "--clock", "cpu", "--results", str(path)])


def test_seconds_are_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing._clock", itertools.count().__next__)  # a second from each look to the next
    calls: list[None] = []
    assert seconds(lambda: calls.append(None), at_least=3) == 1
    assert len(calls) == 3


def test_cell_that_raises_hangs_or_dies_is_a_cell_with_what_happened() -> None:
    assert apart(returns, 3, limit=300, threads=1) == {"value": 3, "threads": 1}
    assert apart(fails, limit=300) == {"exception": "ValueError: no such matrix"}
    assert apart(hangs, limit=0.5) == {"exception": "not done after 0 s"}
    assert apart(dies, limit=300) == {"exception": "the process ended with exit code 7"}


def test_every_model_maps_its_samples_to_logits() -> None:
    for name, make in MODELS.items():
        if name in ("vit", "gpt2"):
            pytest.importorskip("transformers")
        inputs, targets = samples_for(name, 4, torch.Generator().manual_seed(0))
        logits = make().eval()(inputs)
        assert logits.shape[:-1] == targets.shape, name
        assert cross_entropy(logits, targets).isfinite(), name


def test_a_task_loaded_twice_has_equal_weights_and_batches(tmp_path: Path) -> None:
    first, second = tiny("mlp", tmp_path), tiny("mlp", tmp_path)
    for one, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert any(not torch.equal(first.init_state[key], value) for key, value in first.module.state_dict().items())
    assert torch.equal(first.batches[0][0], second.batches[0][0])
    assert sum(len(inputs) for inputs, _ in first.batches) == first.samples == 8


@pytest.mark.parametrize("name", tasks.NAMES)
def test_ours_agrees_with_the_reference(name: str, tmp_path: Path) -> None:
    if name in ("lambda_max", "matching"):
        pytest.importorskip("scipy")
    if name == "linear":
        pytest.importorskip("sklearn")
    found = tasks.task(name)
    model = "conv1d" if "conv1d" in found.models else found.models[0]
    if model == "vit":
        pytest.importorskip("transformers")
    sizes: Any = (model, tmp_path, found.many_passes, 1 / 8 if name == "linear" else SCALE)
    exact = found.reference(tiny(*sizes))
    for tool in found.tools:
        if tool in ("ours", "masked passes", "SciPy's assignment", "all numbers, one by one") or (
            tool.startswith("ours") and name not in ("lambda_max", "interpolation")
        ):
            work = tiny(*sizes)
            error = found.error(work, found.tools[tool](work)(), exact)
            if name == "trace":
                spread = math.hypot(work.extras["standard error"], work.extras["standard error of the reference"])
                assert error * abs(exact[0]) < 5 * spread
            else:
                assert error < 1e-3 or math.isnan(error), tool


def test_passes_of_an_event_run_without_gradients_as_in_a_fit(tmp_path: Path) -> None:
    work = tiny("mlp", tmp_path)
    probe = InitInterpolation(num_samples=work.samples, micro_batch_size=work.micro_batch_size)
    assert Ready(probe, work, with_init=True).view().detached.gradients is False


@pytest.mark.parametrize("name", ["interpolation", "connectivity", "dropout"])
def test_reference_recalibrates_batch_norm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "dropout":
        monkeypatch.setattr(f"benchmarks.tasks.{name}.POINTS", 3)
    found = tasks.task(name)
    exact = found.reference(tiny("resnet20", tmp_path))
    assert found.error(tiny("resnet20", tmp_path), found.tools["ours"](tiny("resnet20", tmp_path))(), exact) < 1e-4
    work = tiny("resnet20", tmp_path)
    assert found.error(work, found.tools["ours, batch_norm='eval'"](work)(), exact) > 1e-2


@pytest.mark.parametrize("name", ["interpolation", "connectivity"])
def test_line_of_the_peer_is_ours_in_a_network_without_batch_norm(name: str, tmp_path: Path) -> None:
    pytest.importorskip("loss_landscapes")
    found = tasks.task(name)
    work = tiny("conv1d", tmp_path)
    assert found.error(work, found.tools["loss-landscapes"](work)(), found.reference(work)) < 1e-4


def test_plane_of_the_benchmark_keeps_batch_norm_as_training_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.tasks.plane.RESOLUTION", 3)
    found = tasks.task("plane")
    work = tiny("resnet20", tmp_path)
    assert found.error(work, found.tools["ours"](work)(), found.reference(work)) < 1e-4


def test_two_runs_of_a_model_differ_in_their_start_and_in_what_they_have_learned(tmp_path: Path) -> None:
    work = tiny("mlp", tmp_path)
    assert not torch.equal(work.init_state["net.0.weight"], work.other.init_state["net.0.weight"])
    assert not torch.equal(work.module.net[0].weight, work.other.module.net[0].weight)
    again = load("mlp", tmp_path, seed=1)
    assert torch.equal(work.other.module.net[0].weight, again.module.net[0].weight)


def test_plain_pass_of_dropout_is_one_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tiny("mlp", tmp_path)
    plain = tasks.task("dropout").plain(work)
    forwards: list[None] = []
    work.net.register_forward_hook(lambda *_: forwards.append(None))
    plain()
    networks = 1 + 8 + 2  # the whole, eight halves, and without the last two and the last of three layers' units
    assert len(forwards) == networks * len(work.batches)


def test_seconds_of_the_search_for_units_are_those_beyond_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    taken = iter([2.0, 10.0, 2.0, 10.5])
    monkeypatch.setattr("benchmarks.budgets.units.seconds", lambda run: next(taken))
    found = units.of_vit_base(rounds=2, quick=True)
    passes = 2.0 * found["passes"]
    assert (found["seconds"], found["low"], found["high"]) == (10.25 - passes, 10.0 - passes, 10.5 - passes)
    assert found["passes"] >= 2


def test_fisher_reference_is_the_sum_over_samples(tmp_path: Path) -> None:
    work = tiny("mlp", tmp_path)
    total = 0.0
    for inputs, targets in work.batches:
        for x, y in zip(inputs, targets, strict=True):
            work.net.zero_grad()
            cross_entropy(work.net(x[None]), y[None]).backward()
            total += sum(float(param.grad.square().sum()) for param in work.net.parameters() if param.grad is not None)
    assert tasks.task("fisher").reference(work) == pytest.approx(total / work.samples, rel=1e-5)


def test_tool_gets_the_loosest_tolerance_that_reaches_the_target() -> None:
    work = Work("mlp", Lit(nn.Linear(1, 1)), {}, 1, 1, extras={"reference": 2.0})
    run = tuned(work, lambda tolerance: 2.0 + tolerance, (1e-1, 1e-3, 1e-6))
    assert work.extras["tolerance"] == 1e-3
    assert run() == 2.001


def test_cell_has_ratio_error_and_sizes(tmp_path: Path) -> None:
    row = timed("fisher", "mlp", "ours", tmp_path, 2, SCALE, 5.0)
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert row["error"] < 1e-5
    assert (row["samples"], row["rounds"]) == (8, 2)


def test_rows_have_their_exception_where_a_tool_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.command.apart", lambda function, *_, **__: {"exception": "ImportError: none"})
    options = parser().parse_args(["--tasks", "fisher", "--models", "mlp", "--tools", "opacus"])
    assert list(cells(options, tmp_path)) == [
        {"task": "fisher", "model": "mlp", "tool": "opacus", "exception": "ImportError: none"}
    ]


def test_tool_takes_its_variants_along() -> None:
    assert is_chosen("ours, view ready", ["ours"])
    assert is_chosen("anything", None)
    assert not is_chosen("pyhessian", ["ours"])


def row(ratio: float, low: float, high: float, tool: str = "ours") -> dict[str, Any]:
    return {"task": "cka", "model": "mlp", "tool": tool, "ratio": ratio, "ratio_low": low, "ratio_high": high}


@pytest.mark.parametrize(
    ("new", "is_worse"),
    [
        (row(2.0, 1.9, 2.2), True),
        (row(1.3, 1.2, 1.4), False),  # within what is allowed
        (row(2.0, 1.3, 2.7), False),  # by its median, but not beyond its noise
        (row(0.5, 0.4, 0.6), False),
        ({"task": "cka", "model": "mlp", "tool": "ours", "exception": "ValueError"}, True),
        (row(9.0, 9.0, 9.0) | {"model": "vit"}, False),  # was not there
    ],
)
def test_check_fails_for_what_is_worse_beyond_noise(new: dict[str, Any], is_worse: bool) -> None:
    committed = Results(rows=[row(1.0, 0.9, 1.1)])
    assert bool(regression.worse(Results(rows=[new]), committed)) == is_worse


def test_check_judges_no_peer_and_every_budget_that_held() -> None:
    committed = Results(
        rows=[row(1.0, 0.9, 1.1, "opacus")], budgets=[{"what": "a", "holds": True}, {"what": "b", "holds": False}]
    )
    new = Results(rows=[row(9.0, 9.0, 9.0, "opacus")], budgets=[{"what": "b", "holds": False}])
    assert regression.worse(new, committed) == []
    new.budgets.append({"what": "a", "holds": False, "measured": 2.0, "budget": 1.0})
    assert regression.worse(new, committed) == ["a: 2, must be 1.0"]


def test_a_budget_is_lost_beyond_its_noise_and_not_for_want_of_a_package() -> None:
    held = {"what": "a", "holds": True, "budget": 1.1}
    committed = Results(rows=[row(1.0, 0.9, 1.1)], budgets=[held])
    within = held | {"holds": False, "measured": 1.2, "lowest": 1.05}
    assert regression.worse(Results(budgets=[within]), committed) == []
    beyond = within | {"lowest": 1.15}
    assert regression.worse(Results(budgets=[beyond]), committed) == ["a: 1.2, must be 1.1"]
    lacking = {"exception": "ModuleNotFoundError: No module named 'peer'", "holds": False}
    cell = {"task": "cka", "model": "mlp", "tool": "ours", "exception": lacking["exception"]}
    found = Results(rows=[cell], budgets=[{"what": "a", "budget": 1.1} | lacking])
    assert regression.worse(found, committed) == []
    assert regression.compared(found, committed) == 0
    assert [line.partition(":")[0] for line in regression.unjudged(found)] == ["cka / mlp / ours", "a"]


def test_command_measures_as_the_table_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "results.json", []
    Results(machine=machine(threads=3, clock="wall")).save(path)
    monkeypatch.setattr("benchmarks.command.every_row", lambda options, _: iter(seen.append(options) or ()))
    monkeypatch.setattr("benchmarks.command.COMMITTED", path)
    assert main(["--check"]) == 0
    assert main(["--dry", "--results", str(path)]) == 0
    assert main(["--dry", "--results", str(tmp_path / "none.json")]) == 0
    assert [(options.threads, options.clock) for options in seen] == [(3, "wall"), (3, "wall"), (1, "cpu")]
    with pytest.raises(SystemExit, match="measured otherwise"):
        main(["--check", "--threads", "1"])
    with pytest.raises(SystemExit):
        main(["--check", "--quick"])


def test_check_runs_no_peer_and_quick_leaves_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.command.apart", lambda *_, **__: {"exception": "ImportError: none"})
    path = tmp_path / "results.json"
    arguments = ["--tasks", "residual", "--models", "mlp", "resnet20", "--results", str(path)]
    options = parser().parse_args([*arguments, "--check"])
    found = [(row["model"], row["tool"]) for row in cells(options, tmp_path)]
    assert found == [("resnet20", "ours"), ("resnet20", "ours, view ready")]  # an MLP has no residual blocks
    assert main([*arguments, "--quick"]) == 0
    assert not path.exists()


def test_passes_of_an_event_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.budgets.passes.Head2Toe.measure", lambda self, view: [])
    assert passes.of_event(passes.head2toe, "mlp", tmp_path, 1 / 8)["forward"] == 0
    monkeypatch.undo()
    assert passes.of_event(passes.head2toe, "mlp", tmp_path, 1 / 8)["forward"] == 1
    found = passes.of_event(passes.linearized, "mlp", tmp_path, SCALE)
    assert (found["forward"], found["in_forward_mode"], found["products"]) == (27, 1, 0)
    found = passes.of_event(passes.regime, "mlp", tmp_path, SCALE)
    assert found["forward"] == 1
    assert 0 < found["products"] <= 31


@pytest.mark.parametrize("tool", ["captum", "hooks by hand"])
def test_peers_find_our_gradients(tool: str, tmp_path: Path) -> None:
    if tool == "captum":
        pytest.importorskip("captum")
    found = tasks.task("gradient_flow")
    exact = found.tools["ours"](tiny("mlp", tmp_path))()
    assert found.error(tiny("mlp", tmp_path), found.tools[tool](tiny("mlp", tmp_path))(), exact) < 1e-5


def test_rows_that_were_not_run_stay(tmp_path: Path) -> None:
    old = Results(rows=[row(1.0, 1.0, 1.0), row(5.0, 5.0, 5.0, "opacus")])
    new = old.updated(Results(machine={"cores": 2}, rows=[row(2.0, 2.0, 2.0)]))
    assert [found["ratio"] for found in new.rows] == [2.0, 5.0]
    new.save(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == new


def test_rows_from_another_processor_say_so_in_the_file_and_on_the_page(tmp_path: Path) -> None:
    here, there = (machine(threads=1, clock="cpu") | {"cpu": cpu} for cpu in ("fast", "slow"))
    old = Results(machine=here, rows=[row(1.0, 1.0, 1.0), row(5.0, 5.0, 5.0, "opacus")])
    mixed = old.updated(Results(machine=there, rows=[row(2.0, 2.0, 2.0)]))
    mixed.save(tmp_path / "results.json")
    lines = render(Results.read(tmp_path / "results.json")).splitlines()
    assert "(fast)" in lines[0]
    assert lines[2].startswith("Rows marked a in their last column: ")
    assert "(slow)" in lines[2]
    assert [line.rpartition(" | ")[2] for line in lines if line.startswith("| mlp")] == ["a |", " |"]
    again = mixed.updated(Results(machine=here, rows=[row(3.0, 3.0, 3.0)]))
    assert "slow" not in render(again)
    assert [found["ratio"] for found in again.rows] == [3.0, 5.0]


def test_page_keeps_its_prose_and_gets_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Performance\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    write(page, Results(rows=[row(1.0, 0.5, 1.5)]))
    text = page.read_text()
    assert text.startswith("# Performance\n\nBefore.\n\n")
    assert text.endswith("\n\nAfter.\n")
    assert "old" not in text
    assert "1 (0.5 to 1.5)" in text


def test_what_is_no_number_is_written_as_valid_json_and_as_an_empty_cell(tmp_path: Path) -> None:
    Results(rows=[row(math.nan, 1.0, 1.0)]).save(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["ratio"] is None
    assert number(math.nan) == number(None) == ""
    assert (number(0.012345), number(12345.6), number(True)) == ("0.0123", "12346", "yes")


def test_exception_stands_in_the_table() -> None:
    text = render(Results(rows=[{"task": "cka", "model": "mlp", "tool": "x", "exception": "KeyError: 'a|b'"}]))
    assert "KeyError: 'a\\|b'" in text


def test_exponent_of_a_power_law() -> None:
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)


def test_events_of_a_fit_follow_the_default_schedules() -> None:
    probes = accounting.defaults()
    steps = {name: accounting.events_of(probe, epochs=3, samples=100, batch=10) for name, probe in probes.items()}
    assert steps["cka"] == steps["sharpness"] == [0, 1, 2, 3, 6, 10, 18, 30]
    assert steps["interpolation"] == [10, 20, 30]
    assert steps["fisher"][0] == 0
    assert max(steps["fisher"]) < 30


def test_share_counts_samples_events_and_probe_sets() -> None:
    once = accounting.shares(dict.fromkeys(accounting.defaults(), 1.0))
    events = {name: len(accounting.events_of(probe)) for name, probe in accounting.defaults().items()}
    assert {name: share.events for name, share in once.items()} == events
    assert once["cka"].share == pytest.approx(events["cka"] * 512 / (200 * 50_000))
    assert once["interpolation"].passes == events["interpolation"] * 2 * 512  # train and val
    first = accounting.shares(dict.fromkeys(accounting.defaults(), 1.0), dict.fromkeys(accounting.defaults(), 3.0))
    assert first["cka"].passes == (events["cka"] + 2) * 512


PAGES = [
    ("fisher", "fisher_trace", "0.3"),
    ("interpolation", "init_interpolation", "1.1"),
    ("cka", "layer_cka", "0.04"),
    ("sharpness", "sharpness", "7"),
]


@pytest.mark.parametrize(("name", "page", "percent"), PAGES)
def test_the_share_that_a_page_names_is_that_of_the_declared_price(name: str, page: str, percent: str) -> None:
    share = 100 * accounting.shares(accounting.declared())[name].share
    assert f"{percent} % of" in (Path(__file__).parents[1] / "docs" / "probes" / f"{page}.md").read_text()
    assert f"{share:.{len(percent.partition('.')[2])}f}" == percent


def test_difference_of_results_is_relative_to_the_largest_number() -> None:
    assert two_processes.largest_difference({"a": Scalar("a", 2.0)}, {"a": Scalar("a", 2.5)}) == 0.25


def test_command_writes_what_it_ran_and_check_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, page = tmp_path / "results.json", tmp_path / "performance.md"
    found = iter([row(1.0, 0.9, 1.1), row(9.0, 8.9, 9.1)])
    monkeypatch.setattr("benchmarks.command.cells", lambda options, directory: [next(found)])
    monkeypatch.setattr("benchmarks.command.COMMITTED", results)
    pytest.importorskip("matplotlib")
    arguments = ["--tasks", "cka", "--results", str(results), "--page", str(page)]
    assert main(arguments) == 0
    assert len(Results.read(results).rows) == 1
    assert (tmp_path / "performance" / "ratios.png").exists()
    before = results.read_text()
    assert main([*arguments, "--check"]) == 1
    assert "worse than the committed table: cka / mlp / ours" in capsys.readouterr().out
    assert results.read_text() == before
