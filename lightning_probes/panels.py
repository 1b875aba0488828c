"""A W&B workspace and a report that show what the probes measured, to be saved once a project.

Needs the extra `panels`. From the command line: `lightning-probes panels --entity E --project P`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_probes.callbacks.fisher_trace import FisherTrace
from lightning_probes.callbacks.init_interpolation import InitInterpolation
from lightning_probes.callbacks.layer_cka import LayerCKA
from lightning_probes.callbacks.sharpness import Sharpness
from lightning_probes.probing.probe import Probe
from lightning_probes.reporting import Lines

X_AXIS = "trainer/global_step"
LOSS = "val/loss"

_INTRODUCTION = """What the probes of lightning_probes measured, one section a probe. Every value is on the logger's own
step; standard errors are logged beside the values, under `<key>_se`. Flags are 0 or 1 under `<probe>/flag/<flag>`, and
rows of the table `probes/flags`."""
_SWEEP = """Trials of a sweep beside each other. The learning rate drives both the peak of the Fisher trace and the
loss, so that a correlation between the two does not say that one causes the other: compare trials of one learning rate,
and traces at equal loss rather than at equal step."""


def default_probes() -> list[Probe]:
    """The four probes under their default names."""
    return [FisherTrace(), InitInterpolation(), LayerCKA(), Sharpness()]


def workspace(entity: str, project: str, probes: Sequence[Probe] | None = None, loss: str = LOSS) -> Any:
    """A workspace: a section a probe, each panel with how to read it, and a section on sweeps.

    Args:
        entity: The W&B user or team.
        project: The project.
        probes: Those that the runs of the project have; the four under their default names if left out.
        loss: Key of the validation loss.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`; `save` it, or write it with `to_json`.

    Raises:
        ImportError: Without the extra `panels`.

    Example:
        >>> [section.name for section in workspace("me", "mnist").sections]
        ['fisher', 'interpolation', 'cka', 'sharpness', 'sweep']
    """
    _, ws = _library()
    content = _content(probes, loss)
    sections = [ws.Section(name=name, panels=panels, is_open=True) for name, (_, panels) in content.items()]
    return ws.Workspace(entity=entity, project=project, name="Probes", sections=sections)


def report(entity: str, project: str, probes: Sequence[Probe] | None = None, loss: str = LOSS) -> Any:
    """A report template of the same panels, with a text before each group of them.

    Args:
        entity: The W&B user or team.
        project: The project.
        probes: See `workspace`.
        loss: See `workspace`.

    Returns:
        A `wandb_workspaces.reports.v2.Report`; `save` it, or write it with `to_json`.

    Raises:
        ImportError: Without the extra `panels`.

    Example:
        >>> report("me", "mnist").title
        'What the probes measured'
    """
    wr, _ = _library()
    blocks: list[Any] = [wr.MarkdownBlock(text=_INTRODUCTION)]
    for name, (text, panels) in _content(probes, loss).items():
        grid = wr.PanelGrid(runsets=[wr.Runset()], panels=panels)  # all runs of the report's own project
        blocks += [wr.H2(text=name), wr.MarkdownBlock(text=text), grid]
    return wr.Report(entity=entity, project=project, title="What the probes measured", blocks=blocks, width="fluid")


def to_json(made: Any) -> str:
    """A workspace or report as the JSON that W&B is sent, to look at or to keep.

    Example:
        >>> "Sharpness over the optimizer's stability threshold" in to_json(workspace("me", "mnist"))
        True
    """
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


def _content(probes: Sequence[Probe] | None, loss: str) -> dict[str, tuple[str, list[Any]]]:
    """Text and panels of every section."""
    probes = default_probes() if probes is None else probes
    content = {probe.name: (_first_paragraph(probe), list(_panels_of(probe))) for probe in probes}
    return {**content, "sweep": (_SWEEP, list(_sweep_panels(probes, loss)))}


def _panels_of(probe: Probe) -> Iterator[Any]:
    wr, _ = _library()
    reading = "\n".join(f"**{panel.title}.** {panel.caption}" for panel in probe.panels)
    yield wr.MarkdownPanel(markdown=reading, layout=wr.Layout(w=8, h=4))
    for panel in probe.panels:
        if not isinstance(panel, Lines):
            keys = [f"{probe.name}/{panel.key}"]
            yield wr.MediaBrowser(title=panel.title, media_keys=keys, mode="gallery", gallery_axis="step")
            continue
        on_time = panel.x in ("step", "epoch")
        yield wr.LinePlot(
            title=panel.title,
            x=X_AXIS if on_time else f"{probe.name}/{panel.x}",
            y=[f"{probe.name}/{panel.y}"],
            title_x=panel.x_label or ("optimizer steps" if on_time else panel.x),
            title_y=panel.y_label or panel.y,
            log_x=panel.log_x,
            log_y=panel.log_y,
        )


def _sweep_panels(probes: Sequence[Probe], loss: str) -> Iterator[Any]:
    wr, _ = _library()
    yield wr.MarkdownPanel(markdown=_SWEEP, layout=wr.Layout(w=8, h=4))
    peaks = [f"{probe.name}/trace_max" for probe in probes if isinstance(probe, FisherTrace)]
    columns = [wr.Config("lr"), wr.Config("batch_size"), *map(wr.SummaryMetric, (*peaks, loss))]
    yield wr.ParallelCoordinatesPlot(
        title="Settings, Fisher peak and validation loss of each trial",
        columns=[wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns],
    )
    for peak in peaks:
        yield wr.ScatterPlot(
            title="Fisher peak against final validation loss, coloured by learning rate (which drives both)",
            x=wr.SummaryMetric(peak), y=wr.SummaryMetric(loss), z=wr.Config("lr"), log_x=True,
        )  # fmt: skip


def _first_paragraph(probe: Probe) -> str:
    return (type(probe).__doc__ or "").strip().partition("\n")[0]
