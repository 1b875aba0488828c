"""What the probes of a run have seen, as one HTML page that needs nothing but a browser.

Plain functions: measurements in, text out. The template `page.html.j2` has the markup; this file prepares its values.
Plotly's script and the figures are part of the page, and a policy in its head forbids the browser to fetch anything.
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
        columns: Their names.
        rows: Each with a class of its own, and its cells.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


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
    def anchor(self) -> str:
        """Its name, as a part of an address."""
        return self.name.replace(" ", "-")

    @property
    def seconds(self) -> float:
        """What all measurements took, those before a resumption too."""
        return sum(entry.get(f"{self.name}/seconds", 0.0) for entry in self.history)

    @property
    def scalars(self) -> Table:
        """A row a scalar: its latest value, its standard error, and the last step at which it was finite."""
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
    from plotly.offline import get_plotlyjs

    return _template().render(
        title=title, facts=facts, sections=sections, flags=_flags(flags), settings=_settings(sections),
        costs=_costs(sections), drawn=_drawn, style=_packaged("page.css"), script=_packaged("page.js"),
        plotly=get_plotlyjs(),
    )  # fmt: skip


def number(value: float | None) -> str:
    """Four digits; an empty cell where there is no number.

    Example:
        >>> number(0.123456), number(None), number(float("nan"))
        ('0.1235', '', 'nan')
    """
    return "" if value is None else f"{value:.4g}"


def _flags(flags: Iterable[tuple[int, str, Flag]]) -> Table:
    """A row for each flag that has risen."""
    rows = []
    for step, probe, flag in flags:
        name = flag.key.removeprefix(f"{probe}/flag/")
        cells = [str(step), probe, name, number(flag.value), number(flag.threshold), flag.level, flag.message]
        rows.append((flag.level, cells))
    return Table(("step", "probe", "flag", "value", "threshold", "level", "message"), rows)


def _settings(sections: Sequence[Section]) -> Table:
    """A row a setting, a column a probe."""
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
    """What the script of the page draws: the figure, and what its colours become on a dark page."""
    panel, figure = picture.panel, picture.figure()
    height = panel.height(figure)
    # The page itself has title and caption as text, which wraps on a narrow screen.
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
