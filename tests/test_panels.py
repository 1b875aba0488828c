"""The W&B workspace and report: every probe has its section, and what they show is what probes log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_probes import EveryNSteps, FisherTrace, Scalar, Sharpness
from lightning_probes.cli import main
from lightning_probes.panels import default_probes, report, to_json, workspace
from lightning_probes.probing import Extreme, Lines, Moment, Monitor
from lightning_probes.testing.zoo import CASES
from tests import wandb_offline
from tests.tester import fit, probe

pytest.importorskip("wandb_workspaces")


UNITS = (
    "nats² per squared weight", "loss per squared weight", "no unit", "unit of training", "unit of the training loss",
    "share", "1 or 0",
)  # fmt: skip
# What has no picture of its own over steps, with its unit and how it is to be read.
HEADLINES = {
    "interpolation/max_rise": ("unit of the training loss", "A barrier does not mean bad optimisation."),
    "interpolation/monotonic": ("1 or 0", "A smooth path does not mean good optimisation."),
    "cka/to_init_mean": ("no unit", "below null_p95 = unrelated. A change need not be learning."),
    "cka/null_p95": ("no unit", "Similarity below this level can be chance."),
    "sharpness/sam": ("unit of the training loss", "compare runs with equal rho. Not a generalisation score."),
}


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


@pytest.mark.parametrize("prefix", ["", "fold0"])
def test_what_panels_show_is_what_a_run_has(prefix: str, tmp_path: Path) -> None:
    probes = [probe(each.name, sharp_threshold=0.0) if each.name == "sharpness" else probe(each.name)
              for each in default_probes()]  # fmt: skip
    fit(CASES["cnn"].make, probes, logger=WandbLogger(save_dir=tmp_path, mode="offline", prefix=prefix))
    wandb.finish()
    (run,) = wandb_offline.read_all(tmp_path)
    logged = {key for row in run.history for key in row}
    found = sections(workspace("me", "mnist", prefix=prefix))
    before = f"{prefix}-" if prefix else ""
    assert {before + key for key in HEADLINES} <= logged
    for panels in found.values():
        assert keys_of(panels) <= logged
    assert {panel["config"]["xAxis"] for panels in found.values() for panel in panels
            if panel["viewType"] == "Run History Line Plot"} <= logged  # fmt: skip
    native = run.config["_wandb"]["visualize"][f"{before}interpolation/loss"]["panel_config"]["stringSettings"]
    assert native["title"].startswith("Training loss (unit of training)")
    assert native["xname"] == "alpha. A smooth path does not mean good optimisation"
    assert f"{before}probes/flags" in logged
    assert f'"{before}probes/flags"' in json.dumps(found["flags"])


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
        "A smooth path does not mean good optimisation",
        "elow null_p95 = unrelated",
        "Not a generalisation score",
        "SGD with small batches below 1",
        "the learning rate changes both the peak and the generalisation",
        "The learning rate drives both",
    ],
)
def test_wrong_conclusions_are_warned_of(made: Any, words: str) -> None:
    assert words in to_json(made("me", "mnist"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("fisher", "It need not be the cause, and is not a generalisation score"),
        ("interpolation", "A smooth path does not mean good optimisation"),
        ("cka", "elow null_p95 = unrelated"),
        ("sharpness", "Not a generalisation score"),
        ("sharpness", "SGD with small batches below 1"),
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
    line, media = "Run History Line Plot", "Media Browser"
    assert kinds_of(found["sharpness"]) == ["Markdown Panel", *[line, media] * 2, line]
    assert kinds_of(found["interpolation"]) == ["Markdown Panel", *[media] * 4, line, line]
    assert kinds_of(found["cka"]) == ["Markdown Panel", *[media] * 2, line, line]
    assert kinds_of(found["sweep"]) == ["Markdown Panel", "Parallel Coordinates Plot", "Scatter Plot"]


@pytest.mark.parametrize("key", HEADLINES)
@pytest.mark.parametrize("prefix", ["", "fold0"])
def test_each_headline_scalar_has_a_line_plot_with_its_unit_and_a_sentence(key: str, prefix: str) -> None:
    name, _, scalar = key.partition("/")
    text, *panels = sections(workspace("me", "mnist", prefix=prefix))[name]
    logged, (unit, words) = f"{prefix}-{key}" if prefix else key, HEADLINES[key]
    (plot,) = [panel["config"] for panel in panels if panel["config"].get("metrics") == [logged]]
    assert plot["chartTitle"] == f"{scalar} ({unit}) over training steps, all runs"
    assert plot["xAxis"] == "trainer/global_step"
    texts = text["config"]["value"].split("\n\n")
    assert any(f"({unit}).** " in each and f"{words} *Does not show:* " in each for each in texts)


def test_scalars_of_a_subclass_under_another_name_have_their_plots() -> None:
    class Mine(Sharpness):
        """Of one's own."""

    assert "mine/sam" in keys_of(sections(workspace("me", "mnist", [Mine(name="mine")]))["mine"])


def test_flags_and_parallel_coordinates_say_which_units_they_have() -> None:
    found = sections(workspace("me", "mnist"))
    assert "(units as logged)" in found["flags"][0]["config"]["value"].partition("**.")[0]
    assert "(units on the axes, or as logged)" in found["sweep"][1]["config"]["chartTitle"]


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


def test_prefix_stands_before_each_key_of_the_summary_and_none_of_the_config() -> None:
    _, coordinates, scatter = sections(workspace("me", "mnist", loss="valid/nll", prefix="fold0"))["sweep"]
    peak, loss = "summary:fold0-fisher/trace_max_at_loss", "summary:fold0-valid/nll"
    accessors = [column["accessor"] for column in coordinates["config"]["columns"]]
    assert accessors == ["config:lr.value", "config:batch_size.value", peak, loss]
    assert [scatter["config"][axis] for axis in ("xAxis", "yAxis", "zAxis")] == [peak, loss, "config:lr.value"]


def test_prefix_tells_workspaces_and_reports_of_folds_apart() -> None:
    assert [workspace("me", "mnist", prefix=prefix).name for prefix in ("", "fold0")] == ["Probes", "Probes fold0"]
    made = report("me", "mnist", prefix="fold0")
    assert made.title == "What the probes measured (fold0)"
    assert "`fold0-probes/flags`" in to_json(made)
    assert "`probes/flags`" in to_json(report("me", "mnist"))


@pytest.mark.parametrize("made", [workspace, report])
@pytest.mark.parametrize("names", [("flags",), ("sweep", "mine"), ("mine", "mine")])
def test_sections_of_one_name_are_refused_and_the_argument_told(made: Any, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"more than once: \['{names[0]}'\]; give the probes another name="):
        made("me", "mnist", [Sharpness(name=name) for name in names])


def test_report_has_the_same_panels() -> None:
    text = to_json(report("me", "mnist"))
    for each in default_probes():
        assert all(panel.title in text for panel in each.panels)
    assert all(f'"{key}"' in text for key in HEADLINES)


def test_command_writes_both_without_an_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["panels", "--entity", "me", "--project", "mnist", "--json", str(tmp_path / "new")])
    written = capsys.readouterr().out.split()
    assert [Path(path).name for path in written] == ["workspace.json", "report.json"]
    assert all(json.loads(Path(path).read_text()) for path in written)


def test_command_knows_the_prefix(tmp_path: Path) -> None:
    main(["panels", "--entity", "me", "--project", "mnist", "--prefix", "fold0", "--json", str(tmp_path)])
    for name in ("workspace", "report"):
        assert '"fold0-fisher/trace"' in (tmp_path / f"{name}.json").read_text()


def test_missing_extra_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ImportError, match=r"lightning-probes\[panels\]"):
        workspace("me", "mnist")


class Norms(Monitor):
    """The norm of something."""

    panels = (
        Lines("norm_over_steps", "Norm over steps (no unit)", "One sentence.", y="norm", y_label="norm (no unit)"),
    )
    headlines = (
        Lines("zeros", "Share of zeros (share)", "Another.", y="zeros", y_label="zeros (share)", caveat="Why."),
    )
    extremes = (Extreme("norm_max", "Largest norm", "largest norm", "no unit", "It grows with depth."),)

    def __init__(self) -> None:
        super().__init__(name="norms", schedule=EveryNSteps(1))

    def after_step(self, moment: Moment) -> Iterator[Scalar]:
        yield Scalar("norm", 1.0)


def test_a_callback_that_the_package_does_not_know_has_its_section_its_headlines_and_its_part_of_the_sweep() -> None:
    found = sections(workspace("me", "mnist", [Norms(), Sharpness()]))
    text, plot, _, headline = found["norms"]
    assert "**Share of zeros (share).** Another. *Does not show:* Why." in text["config"]["value"]
    assert [panel["config"]["metrics"] for panel in (plot, headline)] == [["norms/norm"], ["norms/zeros"]]
    note, coordinates, scatter = found["sweep"]
    assert note["config"]["value"].endswith("It grows with depth.")
    assert "learning rate" not in note["config"]["value"]
    assert "summary:norms/norm_max" in [column["accessor"] for column in coordinates["config"]["columns"]]
    assert scatter["config"]["chartTitle"] == "Largest norm (no unit) against final val/loss, coloured by lr"
