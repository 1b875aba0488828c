"""The page as text: whole, alone, and safe against whatever a user calls things."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from lightning_probes.reporting import Curves, Picture, pictures
from lightning_probes.reporting.html.page import Section, page
from lightning_probes.results import Curve, Flag, Scalar
from tests.reporting.samples import HISTORY, NAME, NONFINITE, PANELS, TRAIL, UNSTABLE, picture

EVIL = '</script><script>alert("&")</script>'
RESULTS = {"demo/trace": Scalar("demo/trace", 1.0, 0.125), "demo/broken": Scalar("demo/broken", float("nan"))}


def demo(**changes: Any) -> Section:
    """A probe with a picture of every kind."""
    given: dict[str, Any] = {
        "name": NAME, "kind": "Demo", "about": "Shows pictures.", "settings": {"num_samples": 8}, "history": HISTORY,
        "results": RESULTS, "pictures": pictures(PANELS, NAME, HISTORY, TRAIL), "share": 0.25,
    }  # fmt: skip
    return Section(**given | changes)


def text_of(*sections: Section, flags: Any = (), title: str = "Run", facts: Any = None) -> str:
    """The page without Plotly's script, which is there once."""
    text = page(title, facts or {}, flags, sections)
    script = get_plotlyjs()
    assert text.count(script) == 1
    return text.replace(script, "")


def drawn(shown: Picture) -> str:
    """The part of the page that is one picture."""
    (figure,) = re.findall(r"<figure>.*?</figure>", text_of(demo(pictures=(shown,))), flags=re.DOTALL)
    return str(figure)


def cells(text: str) -> list[list[str]]:
    rows = re.findall(r"<tr.*?>(.*?)</tr>", text)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_plotly_is_inlined_once_however_many_figures_there_are() -> None:
    text = text_of(demo(), demo(name="other"))
    assert "plotly.js v" not in text
    assert text.count('class="figure"') == 2 * len(PANELS)


def test_nothing_is_asked_of_the_network() -> None:
    text = text_of(demo(), flags=[(10, NAME, UNSTABLE)])
    assert not re.findall(r"https?:|@import|fetch\(|XMLHttpRequest|url\(|import\(", text)
    assert all(target.startswith(("#", "data:")) for target in re.findall(r'(?:src|href|action)="([^"]*)"', text))
    assert "default-src 'none'" in text


def test_every_text_is_escaped() -> None:
    flag = Flag(f"{EVIL}/flag/{EVIL}", True, message=EVIL)
    trail = {f"{EVIL}/{EVIL}": [(0, Curve(EVIL, [0, 1], [1, 2], EVIL, EVIL))]}
    shown = (Picture(Curves(EVIL, EVIL, EVIL, caveat=EVIL), EVIL, [], trail),)
    history, results = [{"step": 0, "epoch": 0, EVIL: 1.0}], {EVIL: Scalar(EVIL, 1.0)}
    part = Section(EVIL, EVIL, EVIL, {EVIL: EVIL}, history, results, shown, 0.0)
    text = text_of(part, flags=[(0, EVIL, flag)], title=EVIL, facts={EVIL: EVIL})
    assert "<script>alert" not in text
    assert text.count("</script>") == 3, "Plotly's, the page's own, one figure's"
    assert text.count("&lt;script&gt;alert(&#34;&amp;&#34;)") > 10


def test_a_figure_reads_back_as_it_was_drawn() -> None:
    (source,) = re.findall(r'class="figure">(.*?)</script>', drawn(picture("path")))
    content = json.loads(source)
    assert [trace["name"] for trace in content["data"]] == [t.name for t in picture("path").figure().data]
    assert "title" not in content["layout"] or content["layout"]["title"] == {}


def test_title_and_captions_are_text_of_the_page_and_not_of_the_figure() -> None:
    text = drawn(picture("trace_over_steps"))
    before, _, figure = text.partition('class="figure">')
    assert "<h3>Trace</h3><p>With its band.</p>" in before
    assert "With its band." not in figure
    assert "threshold" in figure, "the label of the reference line stays"
    said = drawn(Picture(Curves("path", "Path", caveat="The rest."), NAME, [], TRAIL))
    assert "<b>Does not show:</b> The rest." in said


def test_lines_of_a_dark_page_are_the_lighter_the_later() -> None:
    (source,) = re.findall(r'class="figure">(.*?)</script>', drawn(picture("path")))
    content = json.loads(source)
    lines = [trace["line"]["color"] for trace in content["data"] if "fill" not in trace]
    dark = [content["colours"][colour] for colour in lines]
    assert len(set(dark)) == 3
    contrasts = [contrast(colour, "#15181c") for colour in dark]
    assert contrasts == sorted(contrasts)


@pytest.mark.parametrize("key", [panel.key for panel in PANELS])
def test_colours_of_lines_stand_out_from_a_dark_page(key: str) -> None:
    (source,) = re.findall(r'class="figure">(.*?)</script>', drawn(picture(key)))
    content = json.loads(source)
    for trace in content["data"]:
        if "line" in trace:
            assert contrast(content["colours"][trace["line"]["color"]], "#15181c") > 3


def test_flags_come_first_in_the_order_they_rose() -> None:
    text = text_of(demo(), flags=[(10, NAME, UNSTABLE), (30, NAME, NONFINITE)])
    assert text.index("<h2>Flags") < text.index('<section id="probe-demo"')
    assert ["10", "demo", "unstable", "2.5", "2", "warning", "the step is too long"] in cells(text)
    assert ["30", "demo", "nonfinite", "nan", "", "info", "not finite: demo/trace"] in cells(text)
    assert "none raised" in text_of(demo())


def test_scalars_have_their_errors_and_their_step() -> None:
    rows = cells(text_of(demo()))
    assert ["demo/trace", "1", "± 0.125", "30"] in rows
    assert ["demo/broken", "nan", "", ""] in rows, "a number that is not finite is said to be so"


def test_cost_is_told_of_each_probe_and_of_all() -> None:
    events = [{"step": 0.0, "other/seconds": 1.0}, {"step": 1.0, "other/seconds": 0.5}]
    rows = cells(text_of(demo(), demo(name="other", history=events, share=0.15)))
    assert ["Demo", "other", "2", "1.5", "15.0%"] in rows
    assert ["all", "", "5", "1.5", "40.0%"] in rows


def test_settings_of_all_probes_stand_in_one_table() -> None:
    rows = cells(text_of(demo(), demo(name="other", settings={"rho": 0.5, "data": ["train", "val"]})))
    assert ["num_samples", "8", ""] in rows
    assert ["rho", "", "0.5"] in rows
    assert ["data", "", "train, val"] in rows


def test_links_tell_two_probes_of_one_class_apart() -> None:
    (links,) = re.findall(r"<nav>(.*?)</nav>", text_of(demo(), demo(name="other")), flags=re.DOTALL)
    assert [re.sub(r"<.*?>", "", link) for link in links.split("</a>") if link] == ["Demo demo", "Demo other"]


def test_a_probe_that_has_measured_nothing_says_so() -> None:
    assert "Nothing measured yet." in text_of(demo(history=[], results={}, pictures=()))


def contrast(colour: str, other: str) -> float:
    """Contrast ratio of WCAG 2."""

    def luminance(code: str) -> float:
        parts = [int(code[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(colour), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
