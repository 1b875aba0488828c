"""A W&B workspace and a report that show the results of a project's probes.

They are built from the declarations of each probe: its panels, its headlines, and the extremes for comparing runs.
This needs the extra `panels`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lightning_probes.reporting.extreme import Extreme
from lightning_probes.reporting.panels.base import Panel, ScalarPlot
from lightning_probes.reporting.panels.lines import Lines
from lightning_probes.reporting.wandb.logger import COLOURED, FLAGS, X_AXIS

_INTRODUCTION = """The results of the probes of lightning_probes, one section per probe. The x-axis of every value is
the logger's own step. The standard error of a value is logged under `<key>_se`. Each flag is logged as 0 or 1 under
`{prefix}<probe>/flag/<flag>`, and raised flags are rows of the table `{prefix}probes/flags`."""
_FLAGS = """**Flags (units as logged).** Every raised flag with its step, value, threshold and message. Value and
threshold have the unit of the scalar that the flag is about. A flag of `level` `info` is no reason for concern
(`edge_of_stability` is normal for gradient descent)."""
_SWEEP = "The trials of a sweep, side by side."


class Described(Protocol):
    """The parts of a probe, monitor or intervention that a section shows."""

    @property
    def name(self) -> str:
        """Its name, which precedes its keys."""

    @property
    def panels(self) -> Sequence[Panel]:
        """Its pictures."""

    @property
    def headlines(self) -> Sequence[Lines]:
        """Plots over steps of scalars that no panel shows over steps."""

    @property
    def extremes(self) -> Sequence[Extreme]:
        """The numbers in its summary by which runs are compared."""


class Keys(NamedTuple):
    """The keys under which the runs have the compared numbers.

    Attributes:
        loss: Key of the validation loss, without the prefix.
        lr: Key of the learning rate in the runs' config.
        batch_size: Key of the batch size in the runs' config.
        prefix: The prefix of the runs' `WandbLogger`, which precedes every key except those of the config.
    """

    loss: str
    lr: str
    batch_size: str
    prefix: str

    def logged(self, key: str) -> str:
        """A key as a logger with the prefix writes it."""
        return f"{self.prefix}-{key}" if self.prefix else key


def make_workspace(entity: str, project: str, probes: Sequence[Described], keys: Keys) -> Any:
    """A workspace with one section per probe, which says how to read each panel, and sections on flags and sweeps."""
    _, ws = _library()
    content = _content(probes, keys)
    sections = [ws.Section(name=name, panels=panels, is_open=True) for name, (_, panels) in content.items()]
    return ws.Workspace(entity=entity, project=project, name=f"Probes {keys.prefix}".rstrip(), sections=sections)


def make_report(entity: str, project: str, probes: Sequence[Described], keys: Keys) -> Any:
    """A report with the same panels, and a text before each group of them."""
    wr, _ = _library()
    blocks: list[Any] = [wr.MarkdownBlock(text=_INTRODUCTION.format(prefix=keys.logged("")))]
    for name, (text, panels) in _content(probes, keys).items():
        grid = wr.PanelGrid(runsets=[wr.Runset()], panels=panels)  # all runs of the report's own project
        blocks += [wr.H2(text=name), wr.MarkdownBlock(text=text), grid]
    title = "What the probes measured" + f" ({keys.prefix})" * bool(keys.prefix)
    return wr.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid")


def to_json(made: Any) -> str:
    """A workspace or report as the JSON that is sent to W&B, for reading or archiving."""
    content: str = made._to_model().model_dump_json(by_alias=True, exclude_none=True)  # there is no public one
    return json.dumps(json.loads(content), indent=1, ensure_ascii=False)


def write(made: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write workspaces and reports to `<name>.json` in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, each in made.items():
        paths.append(directory / f"{name}.json")
        paths[-1].write_text(to_json(each))
    return paths


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ImportError("workspaces and reports need the extra: pip install 'lightning-probes[panels]'") from error
    return wr, ws


def _content(probes: Sequence[Described], keys: Keys) -> dict[str, tuple[str, list[Any]]]:
    """Text and panels of every section."""
    wr, _ = _library()
    names = [*(probe.name for probe in probes), "flags", "sweep"]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            "sections have the names of the probes, and 'flags' and 'sweep', but these names occur more than once: "
            f"{sorted(twice)}; give the probes another name="
        )
    content = {probe.name: (_first_paragraph(probe), list(_panels_of(probe, keys))) for probe in probes}
    table = wr.WeavePanelSummaryTable(table_name=keys.logged(FLAGS), layout=wr.Layout(w=16, h=8))
    flags = [_text(_FLAGS), table]  # the text is the title, because a table panel can't have one
    notes = dict.fromkeys(extreme.note for probe in probes for extreme in probe.extremes)
    sweep = " ".join([_SWEEP, *notes])
    return {**content, "flags": (_FLAGS, flags), "sweep": (sweep, [_text(sweep), *_sweep_panels(probes, keys)])}


def _panels_of(probe: Described, keys: Keys) -> Iterator[Any]:
    name = keys.logged(probe.name)
    yield _text("\n\n".join(map(_reading, [*probe.panels, *probe.headlines])))
    for panel in probe.panels:
        if (plot := panel.scalar_plot()) is not None:
            yield _plot(name, plot)
        yield _gallery(name, panel)
    for headline in probe.headlines:
        yield _plot(name, headline.scalar_plot())


def _text(markdown: str) -> Any:
    wr, _ = _library()
    return wr.MarkdownPanel(markdown=markdown, layout=wr.Layout(w=8, h=8))


def _reading(panel: Panel) -> str:
    """A text on how to read a panel, and on what it does not show."""
    caveat = f" *Does not show:* {panel.caveat}" if panel.caveat else ""
    return f"**{panel.title}.** {panel.caption}{caveat}"


def _plot(name: str, plot: ScalarPlot) -> Any:
    """A scalar of all runs in one plot, without error bars. The title names the axes and their units."""
    wr, _ = _library()
    return wr.LinePlot(
        title=f"{plot.y_title} over {plot.x_title}, all runs",
        x=X_AXIS if plot.x is None else f"{name}/{plot.x}",
        y=[f"{name}/{plot.y}"],
        title_x=plot.x_title,
        title_y=plot.y_title,
        log_x=plot.log_x,
        log_y=plot.log_y,
    )


def _gallery(name: str, panel: Panel) -> Any:
    """The picture of each run, with a slider over steps. For curves it is the coloured picture."""
    wr, _ = _library()
    key = f"{name}/{panel.key}" + COLOURED * panel.has_lines_by_name
    return wr.MediaBrowser(title=panel.title_with_unit(), media_keys=[key], mode="gallery", gallery_axis="step")


def _sweep_panels(probes: Sequence[Described], keys: Keys) -> Iterator[Any]:
    wr, _ = _library()
    extremes = {
        keys.logged(f"{probe.name}/{extreme.key}"): (probe.name, extreme)
        for probe in probes
        for extreme in probe.extremes
    }
    loss = keys.logged(keys.loss)
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(keys.lr), display_name="learning rate", log=True),
        wr.ParallelCoordinatesPlotColumn(wr.Config(keys.batch_size), display_name="batch size (samples)"),
        *(
            wr.ParallelCoordinatesPlotColumn(
                wr.SummaryMetric(key), display_name=f"{name} {extreme.column} ({extreme.unit})", log=True
            )
            for key, (name, extreme) in extremes.items()
        ),
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(loss), display_name=f"{keys.loss} (final)"),
    ]
    yield wr.ParallelCoordinatesPlot(
        title="Settings, results of the probes and validation loss of each trial (units on the axes, or as logged)",
        columns=columns,
    )
    for key, (_, extreme) in extremes.items():
        yield wr.ScatterPlot(
            title=f"{extreme.title} ({extreme.unit}) against final {keys.loss}, coloured by {keys.lr}"
            + f", {extreme.about_lr}" * bool(extreme.about_lr),
            x=wr.SummaryMetric(key),
            y=wr.SummaryMetric(loss),
            z=wr.Config(keys.lr),
            log_x=True,
            log_z=True,
        )


def _first_paragraph(probe: Described) -> str:
    return (type(probe).__doc__ or "").strip().partition("\n")[0]
