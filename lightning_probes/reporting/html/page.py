"""What the probes of a run have seen, as one HTML page that needs nothing but a browser.

Plain functions: measurements in, text out. Plotly's own script and the figures are part of the page, and a policy in
its head forbids whatever else a browser could fetch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from lightning_probes.reporting.event import Picture
from lightning_probes.reporting.panels.base import History
from lightning_probes.results import Flag, Result, Scalar

FLAG_COLUMNS = ("step", "probe", "flag", "value", "threshold", "level", "message")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Section:
    """One probe's part of the page.

    Args:
        name: The probe's name, put in front of its keys.
        kind: Its class.
        about: One sentence: what it measures.
        settings: Its arguments and what was drawn for it.
        history: One entry an event under full keys.
        results: The latest result under each full key.
        pictures: What it has to show.
        share: What it took, as a share of the time that this process has trained.
    """

    name: str
    kind: str
    about: str
    settings: Mapping[str, Any]
    history: History
    results: Mapping[str, Result]
    pictures: Sequence[Picture]
    share: float

    @property
    def seconds(self) -> float:
        """What all measurements took, those before a resumption too."""
        return sum(entry.get(f"{self.name}/seconds", 0.0) for entry in self.history)


def page(
    title: str,
    facts: Mapping[str, str],
    flags: Iterable[tuple[int, str, Flag]],
    sections: Sequence[Section],
) -> str:
    """The whole page.

    Args:
        title: Its heading.
        facts: What there is to say of the run: its model, how far it is, what stopped it.
        flags: All flags that have risen: step, probe and flag, oldest first.
        sections: One a probe.

    Returns:
        HTML, with Plotly's script once.

    Example:
        >>> text = page("Run of <Net>", {"status": "finished"}, [], [])
        >>> "<h1>Run of &lt;Net&gt;</h1>" in text, "none raised" in text
        (True, True)
    """
    links = "".join(f'<a href="#probe-{_anchor(part.name)}">{escape(part.kind)}</a>' for part in sections)
    body = [
        f"<header><h1>{escape(title)}</h1>",
        _facts(facts),
        f"<details><summary>Settings of the probes</summary>{settings_table(sections)}</details>",
        f"<nav>{links}</nav></header>",
        '<noscript><p class="bad">The pictures of this page are drawn by JavaScript, which is off.</p></noscript>',
        f"<section><h2>Flags</h2>{flag_table(flags)}</section>",
        *(section(part) for part in sections),
        f"<section><h2>Cost</h2>{_costs(sections)}</section>",
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{_packaged('report.css')}</style>",
            "</head><body>",
            *body,
            f"<script>{_plotly()}</script>",
            f"<script>{_packaged('report.js')}</script>",
            "</body></html>\n",
        ]
    )


def flag_table(flags: Iterable[tuple[int, str, Flag]]) -> str:
    """A row for each flag that has risen."""
    rows = []
    for step, probe, flag in flags:
        name = flag.key.removeprefix(f"{probe}/flag/")
        cells = [str(step), probe, name, number(flag.value), number(flag.threshold), flag.level, flag.message]
        rows.append((flag.level, cells))
    return f'<div class="flags">{_table(FLAG_COLUMNS, rows)}</div>' if rows else '<p class="soft">none raised</p>'


def settings_table(sections: Sequence[Section]) -> str:
    """A row a setting, a column a probe."""
    keys = dict.fromkeys(key for part in sections for key in part.settings)
    rows = [(key, *(_setting(part.settings.get(key, "")) for part in sections)) for key in keys]
    return f'<div class="settings">{_table(("", *(part.name for part in sections)), [("", row) for row in rows])}</div>'


def section(part: Section) -> str:
    """One probe: what it measures, its pictures, its latest numbers."""
    count = len(part.history)
    if count:
        last = part.history[-1]
        state = f"{count} measurement{'s' * (count > 1)}, the latest at step {last['step']:.0f}."
    else:
        state = "Nothing measured yet."
    return "\n".join(
        [
            f'<section id="probe-{_anchor(part.name)}"><h2>{escape(part.kind)} '
            f'<span class="soft">{escape(part.name)}</span></h2>',
            f'<p>{escape(part.about)} <span class="soft">{state}</span></p>',
            f'<div class="pictures">{"".join(map(drawn, part.pictures))}</div>',
            f"{_scalars(part)}</section>",
        ]
    )


def drawn(picture: Picture) -> str:
    """A picture with how to read it and what it does not show; the script of the page draws it."""
    panel, figure = picture.panel, picture.figure()
    height = panel.height(figure)
    # Title and caption are told by the page, whose text breaks where a narrow screen ends.
    figure.layout.annotations = [note for note in figure.layout.annotations if note.name != "caption"]
    figure.update_layout(title=None, margin={"t": 28}, height=height)
    if figure.layout.plot_bgcolor == "white":
        figure.update_layout(plot_bgcolor="rgba(0,0,0,0)")
    content = {**json.loads(figure.to_json()), "colours": panel.dark_colours(figure)}
    caveat = f"<p><b>Does not show:</b> {escape(panel.caveat)}</p>" if panel.caveat else ""
    caption = f"<p>{escape(panel.caption)}</p>" if panel.caption else ""
    return (
        f"<figure><figcaption><h3>{escape(panel.title)}</h3>{caption}{caveat}</figcaption>"
        f'<div class="plot" role="group" aria-label="{escape(panel.title)}" data-key="{escape(picture.key)}" '
        f'style="height:{height}px"></div>'
        f'<script type="application/json" class="figure">{in_script(content)}</script></figure>'
    )


def in_script(content: Any) -> str:
    r"""JSON that no text in it can end the script element around it.

    Example:
        >>> in_script({"name": "</script>"})
        '{"name": "\\u003c/script>"}'
    """
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def number(value: float | None) -> str:
    """Four digits; an empty cell where there is no number.

    Example:
        >>> number(0.123456), number(None), number(float("nan"))
        ('0.1235', '', 'nan')
    """
    return "" if value is None else f"{value:.4g}"


def _scalars(part: Section) -> str:
    rows = []
    for key, result in part.results.items():
        if isinstance(result, Scalar):
            steps = [entry["step"] for entry in part.history if key in entry]
            error = "" if result.standard_error is None else f"± {number(result.standard_error)}"
            kind = "" if math.isfinite(result.value) else "bad"
            rows.append((kind, [key, number(result.value), error, f"{steps[-1]:.0f}" if steps else ""]))
    columns = ("scalar", "latest value", "standard error", "step")
    return _table(columns, rows) if rows else ""


def _costs(sections: Sequence[Section]) -> str:
    rows = [
        ("", [part.kind, part.name, str(len(part.history)), f"{part.seconds:.1f}", f"{part.share:.1%}"])
        for part in sections
    ]
    seconds, share = sum(part.seconds for part in sections), sum(part.share for part in sections)
    rows.append(("", ["all", "", str(sum(len(p.history) for p in sections)), f"{seconds:.1f}", f"{share:.1%}"]))
    return _table(("probe", "name", "measurements", "seconds", "share of the fit's time"), rows)


def _table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Rows, each with a class of its own."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f'<tr class="{escape(kind)}">{"".join(map(_cell, columns, cells))}</tr>' for kind, cells in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(column: str, text: str) -> str:
    """A cell that knows its column: a narrow screen shows a table's rows as lists."""
    return f'<td data-column="{escape(column)}">{escape(text)}</td>'


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _anchor(name: str) -> str:
    return escape(name.replace(" ", "-"))


@cache
def _packaged(name: str) -> str:
    return files("lightning_probes.reporting").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
