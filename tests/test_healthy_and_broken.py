"""What the pages of the probes say of a healthy and a broken run, in the example that draws their pictures."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("fisher_trace", "init_interpolation", "layer_cka", "loss_plane", "sharpness")


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "healthy_and_broken.py"))


@pytest.mark.slow
def test_small_learning_rate_has_the_larger_fisher_trace_at_equal_loss(example: dict[str, Any]) -> None:
    healthy, broken = example["fisher_trace"](fast=True)
    peaks = [run.probe.summary["fisher/trace_max_at_loss"] for run in (healthy, broken)]
    assert peaks[1] > 2 * peaks[0] > 0


@pytest.mark.slow
def test_adam_with_a_large_learning_rate_leaves_a_barrier_on_the_line(example: dict[str, Any]) -> None:
    healthy, broken = (run.probe.history[-1] for run in example["init_interpolation"](fast=True))
    assert healthy["interpolation/monotonic"] == 1
    assert broken["interpolation/monotonic"] == 0
    assert broken["interpolation/max_rise"] > 2 * broken["interpolation/max_rise_se"] > 0
    for key in ("plateau_fraction", "distance_normalized"):
        assert broken[f"interpolation/{key}"] > healthy[f"interpolation/{key}"]


@pytest.mark.slow
def test_frozen_layers_keep_a_similarity_of_one_and_the_others_do_not(example: dict[str, Any]) -> None:
    healthy, broken = (
        dict(zip(result.row_labels, result.values[:, 0], strict=True))
        for run in example["layer_cka"](fast=True)
        for result in [run.probe.results["cka/to_init"]]
    )
    frozen = ["layers.0", "layers.2"]
    assert [broken.pop(name) for name in frozen] == pytest.approx([1, 1], abs=1e-6)
    assert max(broken.values()) < 0.95
    assert max(healthy.values()) < 0.95


@pytest.mark.slow
def test_a_run_that_learns_nothing_is_explained_like_a_random_walk(example: dict[str, Any]) -> None:
    healthy, broken = (run.probe.history[-1] for run in example["loss_plane"](fast=True))
    assert healthy["plane/explained_variance"] > healthy["plane/explained_variance_random_walk"] + 0.04
    assert broken["plane/explained_variance"] < broken["plane/explained_variance_random_walk"] + 0.03
    assert broken["plane/explained_variance"] > 0.7
    assert broken["plane/centre_loss"] == pytest.approx(math.log(10), abs=0.05)


@pytest.mark.slow
def test_only_the_diverging_run_raises_unstable_and_it_never_learns(example: dict[str, Any]) -> None:
    healthy, broken = (run.probe.history for run in example["sharpness"](fast=True))
    assert not any(entry["sharpness/flag/unstable"] for entry in healthy)
    assert any(entry.get("sharpness/flag/unstable") for entry in broken)
    # Rounding decides whether the network dies at the loss of guessing or its weights become infinite.
    assert (
        broken[-1].get("sharpness/loss", math.inf) == pytest.approx(math.log(10), abs=0.2)
        or (broken[-1]["sharpness/flag/nonfinite"])
    )
    assert healthy[-1]["sharpness/loss"] < 0.8 * math.log(10)


@pytest.mark.slow
def test_the_command_writes_the_pictures_and_prints_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], example: dict[str, Any]
) -> None:
    monkeypatch.setattr("sys.argv", ["healthy_and_broken.py", "--fast", "--only", "layer_cka", "--out", str(tmp_path)])
    example["main"]()
    assert [path.name for path in tmp_path.iterdir()] == ["layer_cka.png"]
    assert matplotlib.image.imread(tmp_path / "layer_cka.png").shape[:2] == (418, 1056)
    assert re.search(r"^ +cka/to_init_mean 0\.\d+$", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_page_embeds_the_picture_of_its_probe(page: str) -> None:
    text = (ROOT / "docs" / "probes" / f"{page}.md").read_text()
    own = [found for found in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text) if not found.startswith("../gallery/")]
    assert own == [f"{page}.png"]
    assert matplotlib.image.imread(ROOT / "docs" / "probes" / f"{page}.png").shape[:2] == (418, 1056)
    assert "healthy_and_broken.py" in text
