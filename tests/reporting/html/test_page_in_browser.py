"""The page in headless Chromium: drawn, moved, dark, narrow, and silent on console and network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_probes.reporting.html.page import page
from tests.browser import CHROMIUM, Tab, chromium
from tests.reporting.html.test_page import EVIL, demo
from tests.reporting.samples import PANELS, UNSTABLE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package chromium")
KEYS = [f"demo/{panel.key}" for panel in PANELS]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    flags = [(10, "demo", UNSTABLE)]
    path.write_text(page(EVIL, {"folder": "/a/very/long/path" * 9}, flags, [demo(settings={EVIL: "x" * 300})]))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, report: Path) -> Iterator[Tab]:
    """The page freshly opened; whatever the test does with it, it stays silent."""
    browser.errors.clear()
    browser.requests.clear()
    browser.open(report)
    yield browser
    browser.value("new Promise((resolve) => setTimeout(resolve, 100))")
    assert not browser.errors
    assert all(address.startswith(("data:", "blob:")) or address == report.as_uri() for address in browser.requests)


def plot(key: str) -> str:
    return f"document.querySelector('[data-key={json.dumps(key)}]')"


def move(tab: Tab, key: str, share: float) -> None:
    """Press the slider of a figure at a share of its length."""
    rail = f"{plot(key)}.querySelector('.slider-rail-touch-rect')"
    tab.value(f"{rail}.scrollIntoView({{block: 'center'}})")
    x, y, width, height = tab.value(
        f"(({{x, y, width, height}}) => [x, y, width, height])({rail}.getBoundingClientRect())"
    )
    tab.press(x + 4 + share * (width - 8), y + height / 2)
    tab.value("new Promise((resolve) => setTimeout(resolve, 400))")


def chosen(tab: Tab, key: str) -> str:
    text: str = tab.value(f"{plot(key)}.querySelector('.slider-label-group text, .slider-label').textContent")
    return text


def shown(tab: Tab) -> Any:
    return tab.value(f"{plot('demo/layers')}.querySelector('.heatmaplayer image').getAttribute('href')")


def opacities(tab: Tab) -> list[float]:
    """Of the three lines of the curves, as drawn."""
    lines = f"[...{plot('demo/path')}.querySelectorAll('.scatterlayer .trace')].slice(-6)"
    drawn: list[float] = tab.value(f"{lines}.map((line) => Number(getComputedStyle(line).opacity))")
    return drawn


def test_every_figure_is_drawn(tab: Tab) -> None:
    found = (
        "[...document.querySelectorAll('.plot')].map((plot) => [plot.dataset.key, plot.querySelectorAll('svg').length])"
    )
    counts = dict(tab.value(found))
    assert list(counts) == KEYS
    assert min(counts.values()) >= 1
    paths = "document.querySelectorAll('.scatterlayer path.js-line, .heatmaplayer image').length"
    assert tab.value(paths) >= 6


def test_the_slider_of_heatmaps_moves_to_another_step(tab: Tab) -> None:
    before = shown(tab)
    assert chosen(tab, "demo/layers") == "step 30"
    move(tab, "demo/layers", 0.0)
    assert chosen(tab, "demo/layers") == "step 0"
    assert shown(tab) != before
    move(tab, "demo/layers", 1.0)
    assert shown(tab) == before


def test_the_slider_of_curves_singles_out_a_checkpoint(tab: Tab) -> None:
    everything = opacities(tab)
    assert chosen(tab, "demo/path") == "step: all"
    move(tab, "demo/path", 0.0)
    assert chosen(tab, "demo/path") == "step: 0"
    assert [now < before for now, before in zip(opacities(tab), everything, strict=True)] == [False] * 2 + [True] * 4
    move(tab, "demo/path", 1.0)
    assert opacities(tab) == everything


def test_a_dark_scheme_redraws_the_figures_and_leaves_the_slider_where_it_is(tab: Tab) -> None:
    line = f"getComputedStyle({plot('demo/trace_over_steps')}.querySelector('path.js-line')).stroke"
    text = f"getComputedStyle({plot('demo/trace_over_steps')}.querySelector('.xtick text')).fill"
    move(tab, "demo/layers", 0.0)
    first = shown(tab)
    light = [tab.value(part) for part in (line, text, "getComputedStyle(document.body).backgroundColor")]
    tab.scheme(dark=True)
    tab.value("new Promise((resolve) => setTimeout(resolve, 400))")
    dark = [tab.value(part) for part in (line, text, "getComputedStyle(document.body).backgroundColor")]
    assert light == ["rgb(0, 114, 178)", "rgb(28, 30, 33)", "rgb(255, 255, 255)"]
    assert dark == ["rgb(86, 180, 233)", "rgb(228, 230, 234)", "rgb(21, 24, 28)"]
    assert (chosen(tab, "demo/layers"), shown(tab)) == ("step 0", first)


@pytest.mark.parametrize("width", [390, 820, 1200])
def test_the_page_is_as_wide_as_the_screen(tab: Tab, report: Path, width: int) -> None:
    tab.open(report, width, 844, phone=width < 600)
    assert tab.value("document.documentElement.scrollWidth") == width
    edges = "[...document.querySelectorAll('.plot .main-svg')].map((svg) => svg.getBoundingClientRect().right)"
    assert max(tab.value(edges)) <= width


def test_no_text_of_a_user_is_run(tab: Tab) -> None:
    assert tab.value("document.querySelector('h1').textContent") == EVIL
