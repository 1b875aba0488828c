"""The workspace and the report are saved to a server: by their own methods, and by the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_probes.cli import main
from lightning_probes.panels import default_probes, report, workspace
from tests.wandb_backend import ENTITY, Backend
from tests.wandb_server import serving

pytest.importorskip("wandb_workspaces")
NAMES = ["fisher", "interpolation", "cka", "sharpness", "flags", "sweep"]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server
    assert server.failures == []
    assert server.unknown == []


def spec(view: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(view["spec"])
    return content


def section_names(view: dict[str, Any]) -> list[str]:
    return [section["name"] for section in spec(view)["section"]["panelBankConfig"]["sections"]]


def headings(view: dict[str, Any]) -> list[str]:
    blocks = spec(view)["blocks"]
    return [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]


def test_workspace_arrives_with_a_section_a_probe(server: Backend) -> None:
    workspace(ENTITY, "online").save()
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == (ENTITY, "online", "Probes")
    assert section_names(view) == NAMES


def test_report_arrives_with_a_heading_a_probe(server: Backend) -> None:
    report(ENTITY, "online").save()
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == (ENTITY, "online")
    assert headings(view) == NAMES
    assert all(panel.title in view["spec"] for each in default_probes() for panel in each.panels)


def test_command_saves_both_and_prints_where_they_are(server: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    main(["panels", "--entity", ENTITY, "--project", "online", "--loss", "valid/nll", "--lr", "opt.lr"])
    saved, written = server.views
    assert section_names(saved) == headings(written) == NAMES
    assert all("summary:valid/nll" in view["spec"] and "config:opt.value.lr" in view["spec"] for view in server.views)
    urls = capsys.readouterr().out.split()
    assert len(urls) == 2
    assert all(f"/{ENTITY}/online" in url for url in urls)
