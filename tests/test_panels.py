"""The W&B workspace and report: every probe has its section, and what they show is what probes log."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_probes import FisherTrace, Sharpness
from lightning_probes.cli import main
from lightning_probes.panels import default_probes, report, to_json, workspace
from tests.tester import fit, probe
from tests.zoo import CASES

pytest.importorskip("wandb_workspaces")


def sections(made: Any) -> dict[str, list[dict[str, Any]]]:
    bank = json.loads(to_json(made))["spec"]["section"]["panelBankConfig"]
    return {section["name"]: section["panels"] for section in bank["sections"]}


def keys_of(panels: list[dict[str, Any]]) -> set[str]:
    """The metrics and media that some panels show."""
    configs = [panel["config"] for panel in panels]
    return {key for config in configs for key in (*config.get("metrics", ()), *config.get("mediaKeys", ()))}


def test_each_probe_has_a_section_and_sweeps_have_one() -> None:
    found = sections(workspace("me", "mnist", [FisherTrace(name="early"), Sharpness()]))
    assert list(found) == ["early", "sharpness", "sweep"]
    assert keys_of(found["early"]) == {"early/trace"}


def test_what_panels_show_is_what_probes_log() -> None:
    kinds = {each.name: probe(each.name) for each in default_probes()}
    fit(CASES["list_batch"].make, list(kinds.values()))
    for name, panels in sections(workspace("me", "mnist")).items():
        if name != "sweep":
            drawn = {picture.key for picture in kinds[name].pictures()}
            assert keys_of(panels) - {"interpolation/val/accuracy"} <= {*kinds[name].history[-1], *drawn}


def test_each_panel_has_a_title_and_a_sentence_on_how_to_read_it() -> None:
    for each in default_probes():
        (reading, *panels) = sections(workspace("me", "mnist", [each]))[each.name]
        assert len(panels) == len(each.panels)
        for panel in each.panels:
            assert panel.caption
            assert panel.title in reading["config"]["value"]
            assert panel.caption in reading["config"]["value"]


def test_time_axes_are_the_trainers_steps() -> None:
    panels = sections(workspace("me", "mnist"))["sharpness"]
    assert {panel["config"].get("xAxis") for panel in panels[1:]} == {"trainer/global_step"}


def test_sweeps_are_warned_of_what_the_learning_rate_drives() -> None:
    text, coordinates, scatter = sections(workspace("me", "mnist", loss="valid/nll"))["sweep"]
    assert "learning rate" in text["config"]["value"]
    assert "valid/nll" in json.dumps(coordinates)
    assert "fisher/trace_max" in json.dumps(scatter)
    assert "learning rate" in json.dumps(scatter)


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
