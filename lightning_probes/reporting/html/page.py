"""The results of a run's probes as one HTML page, which needs only a browser.

The template `page.html.j2` has the markup, and this file prepares its values. Plotly's script and the figures are part
of the page. A policy in its head forbids the browser to load anything else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_probes.reporting.event import Picture
from lightning_probes.reporting.panels.base import History
from lightning_probes.results import Flag, Result, Scalar

if TYPE_CHECKING:
    import jinja2


class Table(NamedTuple):
    """A table of the page.

    Attributes:
        columns: The names of the columns.
        rows: For each row its CSS class and its cells.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Section:
    """One probe's part of the page.

    Args:
        name: The probe's name, which precedes its keys.
        kind: Its class.
        about: One sentence on what it measures.
        settings: Its arguments and its drawn samples.
        history: One entry per event under full keys.
        results: The latest result under each full key.
        pictures: Its pictures.
        share: Its time, as a share of this process's training time.
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
    def anchor(self) -> str:
        """The probe's name as part of a link."""
        return self.name.replace(" ", "-")

    @property
    def seconds(self) -> float:
        """The time of all measurements, including those before the run was resumed."""
        return sum(entry.get(f"{self.name}/seconds", 0.0) for entry in self.history)

    @property
    def scalars(self) -> Table:
        """One row per scalar: its latest value, its standard error, and the last step at which it was finite."""
        rows = []
        for key, result in self.results.items():
            if isinstance(result, Scalar):
                steps = [entry["step"] for entry in self.history if key in entry]
                error = "" if result.standard_error is None else f"± {number(result.standard_error)}"
                kind = "" if math.isfinite(result.value) else "bad"
                rows.append((kind, [key, number(result.value), error, f"{steps[-1]:.0f}" if steps else ""]))
        return Table(("scalar", "latest value", "standard error", "step"), rows)


def page(
    title: str,
    facts: Mapping[str, str],
    flags: Iterable[tuple[int, str, Flag]],
    sections: Sequence[Section],
) -> str:
    """The whole page.

    Args:
        title: The heading of the page.
        facts: Facts about the run: its model, its progress, what stopped it.
        flags: All flags that were raised: step, probe and flag, oldest first.
        sections: One section per probe.

    Returns:
        HTML, which contains Plotly's script once.

    Example:
        >>> text = page("Run of <Net>", {"status": "finished"}, [], [])
        >>> "<h1>Run of &lt;Net&gt;</h1>" in text, "none raised" in text
        (True, True)
    """
    from plotly.offline import get_plotlyjs

    return _template().render(
        title=title, facts=facts, sections=sections, flags=_flags(flags), settings=_settings(sections),
        costs=_costs(sections), drawn=_drawn, style=_packaged("page.css"), script=_packaged("page.js"),
        plotly=get_plotlyjs(),
    )  # fmt: skip


def number(value: float | None) -> str:
    """A number with four digits, or an empty text for None.

    Example:
        >>> number(0.123456), number(None), number(float("nan"))
        ('0.1235', '', 'nan')
    """
    return "" if value is None else f"{value:.4g}"


def _flags(flags: Iterable[tuple[int, str, Flag]]) -> Table:
    """One row for each raised flag."""
    rows = []
    for step, probe, flag in flags:
        name = flag.key.removeprefix(f"{probe}/flag/")
        cells = [str(step), probe, name, number(flag.value), number(flag.threshold), flag.level, flag.message]
        rows.append((flag.level, cells))
    return Table(("step", "probe", "flag", "value", "threshold", "level", "message"), rows)


def _settings(sections: Sequence[Section]) -> Table:
    """One row per setting and one column per probe."""
    keys = dict.fromkeys(key for part in sections for key in part.settings)
    rows = [("", [key, *(_in_words(part.settings.get(key, "")) for part in sections)]) for key in keys]
    return Table(("", *(part.name for part in sections)), rows)


def _costs(sections: Sequence[Section]) -> Table:
    rows = [
        ("", [part.kind, part.name, str(len(part.history)), f"{part.seconds:.1f}", f"{part.share:.1%}"])
        for part in sections
    ]
    seconds, share = sum(part.seconds for part in sections), sum(part.share for part in sections)
    rows.append(("", ["all", "", str(sum(len(p.history) for p in sections)), f"{seconds:.1f}", f"{share:.1%}"]))
    return Table(("probe", "name", "measurements", "seconds", "share of the fit's time"), rows)


def _drawn(picture: Picture) -> dict[str, Any]:
    """The data for the page's script: the figure, and the colours that replace its own on a dark page."""
    panel, figure = picture.panel, picture.figure()
    height = panel.height(figure)
    # The page shows title and caption as text, which can wrap on a narrow screen.
    figure.layout.annotations = [note for note in figure.layout.annotations if note.name != "caption"]
    figure.update_layout(title=None, margin={"t": 28}, height=height)
    if figure.layout.plot_bgcolor == "white":
        figure.update_layout(plot_bgcolor="rgba(0,0,0,0)")
    return {**json.loads(figure.to_json()), "colours": panel.dark_colours(figure)}


def _in_words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.from_string(_packaged("page.html.j2"))


@cache
def _packaged(name: str) -> str:
    return files("lightning_probes.reporting.html").joinpath(name).read_text(encoding="utf-8")
