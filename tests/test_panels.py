"""The W&B workspace and report: every probe has its section, and what they show is what probes log."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_probes import FisherTrace, Sharpness
from lightning_probes.cli import main
from lightning_probes.panels import default_probes, report, to_json, workspace
from tests import wandb_offline
from tests.tester import fit, probe
from tests.zoo import CASES

pytest.importorskip("wandb_workspaces")


UNITS = ("nats² per squared weight", "loss per squared weight", "no unit", "unit of training", "share")


def sections(made: Any) -> dict[str, list[dict[str, Any]]]:
    bank = json.loads(to_json(made))["spec"]["section"]["panelBankConfig"]
    return {section["name"]: section["panels"] for section in bank["sections"]}


def keys_of(panels: list[dict[str, Any]]) -> set[str]:
    """The metrics and media that some panels show."""
    configs = [panel["config"] for panel in panels]
    return {key for config in configs for key in (*config.get("metrics", ()), *config.get("mediaKeys", ()))}


def kinds_of(panels: list[dict[str, Any]]) -> list[str]:
    return [panel["viewType"] for panel in panels]


def test_each_probe_has_a_section_and_flags_and_sweeps_have_one() -> None:
    found = sections(workspace("me", "mnist", [FisherTrace(name="early"), Sharpness()]))
    assert list(found) == ["early", "sharpness", "flags", "sweep"]
    assert keys_of(found["early"]) == {"early/trace", "early/trace_over_steps", "early/trace_over_loss"}


def test_what_panels_show_is_what_a_run_has(tmp_path: Path) -> None:
    probes = [probe(each.name, sharp_threshold=0.0) if each.name == "sharpness" else probe(each.name)
              for each in default_probes()]  # fmt: skip
    fit(CASES["cnn"].make, probes, logger=WandbLogger(save_dir=tmp_path, mode="offline"))
    wandb.finish()
    (run,) = wandb_offline.read_all(tmp_path)
    logged = {key for row in run.history for key in row}
    found = sections(workspace("me", "mnist"))
    for panels in found.values():
        assert keys_of(panels) <= logged
    assert {panel["config"]["xAxis"] for panels in found.values() for panel in panels
            if panel["viewType"] == "Run History Line Plot"} <= logged  # fmt: skip
    native = run.config["_wandb"]["visualize"]["interpolation/loss"]["panel_config"]["stringSettings"]
    assert native["title"].startswith("Training loss (unit of training)")
    assert native["xname"] == "alpha. Descriptive: a smooth path does not mean good optimisation"
    assert "probes/flags" in logged
    assert "probes/flags" in json.dumps(found["flags"])


def test_each_panel_has_a_title_and_how_to_read_it_and_what_it_does_not_show() -> None:
    for each in default_probes():
        (reading, *panels) = sections(workspace("me", "mnist", [each]))[each.name]
        assert all(panel["config"]["chartTitle"] for panel in panels)
        for panel in each.panels:
            assert panel.caption
            assert panel.caveat
            assert all(text in reading["config"]["value"] for text in (panel.title, panel.caption, panel.caveat))


@pytest.mark.parametrize("made", [workspace, report])
@pytest.mark.parametrize(
    "words",
    [
        "Descriptive: a smooth path does not mean good optimisation",
        "elow null_p95 = unrelated",
        "Not a generalisation score",
        "minibatch SGD stays below 1",
        "the learning rate moves peak and generalisation alike",
        "The learning rate drives both",
    ],
)
def test_wrong_conclusions_are_warned_of(made: Any, words: str) -> None:
    assert words in to_json(made("me", "mnist"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("fisher", "not a cause of it, and not a generalisation score"),
        ("interpolation", "Descriptive: a smooth path does not mean good optimisation"),
        ("cka", "elow null_p95 = unrelated"),
        ("sharpness", "Not a generalisation score"),
        ("sharpness", "minibatch SGD stays below 1"),
    ],
)
def test_figures_that_are_sent_say_it_too_and_have_units_on_title_or_axes(kind: str, words: str) -> None:
    each = probe(kind)
    fit(CASES["cnn"].make, [each])
    figures = [picture.figure() for picture in each.pictures()]
    assert len(figures) == len(each.panels)
    captions = [note.text.replace("<br>", " ") for figure in figures for note in figure.layout.annotations]
    assert any(words in caption for caption in captions)
    for figure in figures:
        text = f"{figure.layout.title.text} {figure.layout.yaxis.title.text}"
        assert any(unit in text for unit in UNITS), text


def test_each_scalar_is_in_one_plot_for_all_runs_and_in_the_figure_with_its_band_and_reference() -> None:
    found = sections(workspace("me", "mnist"))
    assert kinds_of(found["sharpness"]) == ["Markdown Panel", *["Run History Line Plot", "Media Browser"] * 2]
    assert kinds_of(found["interpolation"]) == ["Markdown Panel", *["Media Browser"] * 4]
    assert kinds_of(found["sweep"]) == ["Markdown Panel", "Parallel Coordinates Plot", "Scatter Plot"]


def test_each_panel_is_titled_with_its_unit() -> None:
    for name, (_, *panels) in sections(workspace("me", "mnist")).items():
        for panel in panels if name not in ("flags", "sweep") else ():
            title = panel["config"]["chartTitle"]
            assert any(unit in title for unit in UNITS), title
            if panel["viewType"] == "Run History Line Plot":
                assert panel["config"]["yAxisTitle"] in title
                assert panel["config"]["xAxisTitle"] in ("training steps", "loss (nats per target)")


def test_time_axes_are_the_trainers_steps() -> None:
    panels = sections(workspace("me", "mnist"))["sharpness"]
    plots = [panel for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert {panel["config"]["xAxis"] for panel in plots} == {"trainer/global_step"}


def test_sweep_compares_peaks_at_equal_loss_and_says_what_the_learning_rate_drives() -> None:
    made = workspace("me", "mnist", loss="valid/nll", lr="opt.lr", batch_size="data.batch_size")
    text, coordinates, scatter = sections(made)["sweep"]
    assert "learning rate drives both" in text["config"]["value"]
    peak, loss, lr = "summary:fisher/trace_max_at_loss", "summary:valid/nll", "config:opt.value.lr"
    accessors = [column["accessor"] for column in coordinates["config"]["columns"]]
    assert accessors == [lr, "config:data.value.batch_size", peak, loss]
    assert [scatter["config"][axis] for axis in ("xAxis", "yAxis", "zAxis")] == [peak, loss, lr]
    assert "which drives both" in scatter["config"]["chartTitle"]
    assert "half of the first loss" in scatter["config"]["chartTitle"]


def test_sweep_knows_other_names_other_labels_and_other_losses() -> None:
    probes = [FisherTrace(name="early", labels="empirical", at_loss=0.7), Sharpness()]
    _, _, scatter = sections(workspace("me", "mnist", probes))["sweep"]
    assert scatter["config"]["xAxis"] == "summary:early/empirical_trace_max_at_loss"
    assert "a loss of 0.7" in scatter["config"]["chartTitle"]


def test_report_has_the_same_panels() -> None:
    text = to_json(report("me", "mnist"))
    for each in default_probes():
        assert all(panel.title in text for panel in each.panels)


def test_command_writes_both_without_an_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["panels", "--entity", "me", "--project", "mnist", "--json", str(tmp_path / "new")])
    written = capsys.readouterr().out.split()
    assert [Path(path).name for path in written] == ["workspace.json", "report.json"]
    assert all(json.loads(Path(path).read_text()) for path in written)


def test_missing_extra_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ImportError, match=r"lightning-probes\[panels\]"):
        workspace("me", "mnist")
