"""Each script of the gallery shows what it claims: it asserts its own comparison, here on smaller networks."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path

import matplotlib.image
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples" / "gallery").glob("*.py"))


def named(script: Path) -> str:
    return script.stem


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_script_holds_its_claim_and_draws_one_picture(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(script))["main"](tmp_path, fast=True)

    assert [path.name for path in tmp_path.iterdir()] == [f"{script.stem}.png"]
    assert matplotlib.image.imread(tmp_path / f"{script.stem}.png").std() > 0.01
    comparison = capsys.readouterr().out.strip().splitlines()
    assert len(comparison) == 1
    assert len(re.findall(r"\d+\.\d+", comparison[0])) >= 2


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_script_has_the_form_of_all(script: Path) -> None:
    loaded = runpy.run_path(str(script))
    claim = loaded["__doc__"]
    assert claim.splitlines()[0].endswith(".")
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", claim)
    assert f"python examples/gallery/{script.name} --out" in claim
    parameters = inspect.signature(loaded["main"]).parameters
    assert {name: each.default for name, each in parameters.items()} == {"out": inspect.Parameter.empty, "fast": False}


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_committed_picture_is_on_a_page(script: Path) -> None:
    picture = ROOT / "docs" / "gallery" / f"{script.stem}.png"
    assert matplotlib.image.imread(picture).shape[:2] == (418, 1056)
    assert any(f"gallery/{picture.name}" in page.read_text() for page in (ROOT / "docs").rglob("*.md"))


def test_one_command_draws_all_pictures() -> None:
    assert "for script in examples/gallery/*.py" in (ROOT / "Makefile").read_text()
