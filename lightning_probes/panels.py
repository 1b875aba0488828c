"""A W&B workspace and a report that show what the probes measured, to be saved once a project.

Needs the extra `panels`. From the command line: `lightning-probes panels --entity E --project P`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_probes.callbacks.curvature.fisher_trace import FisherTrace
from lightning_probes.callbacks.curvature.sharpness import Sharpness
from lightning_probes.callbacks.features.layer_cka import LayerCKA
from lightning_probes.callbacks.paths.init_interpolation import InitInterpolation
from lightning_probes.probing.probe import Probe
from lightning_probes.reporting import Lines, Panel
from lightning_probes.reporting.panels.base import ScalarPlot
from lightning_probes.reporting.wandb.logger import COLOURED, FLAGS, X_AXIS

_TRACE_UNIT = "nats² per squared weight"
_INTRODUCTION = """What the probes of lightning_probes measured, one section a probe. Every value is on the logger's own
step; standard errors are logged beside the values, under `<key>_se`. Flags are 0 or 1 under
`{prefix}<probe>/flag/<flag>`, and rows of the table `{prefix}probes/flags`."""
_FLAGS = """**Flags (units as logged).** Every flag that has risen, with its step, value, threshold and message; value
and threshold are in the unit of the scalar that the flag is about. `level` `info` is no cause for alarm
(`edge_of_stability` is normal for gradient descent)."""
_SWEEP = """Trials of a sweep beside each other. The learning rate drives both the peak of the Fisher trace and the
loss, so that a correlation between the two does not say that one causes the other: compare trials of one learning rate,
and traces at equal loss rather than at equal step. The peak at equal loss is the largest trace until the probe's own
loss first fell to `at_loss`, half of its first value unless that was set; trials that did not get there have none."""
_LOSS = "unit of the training loss"
# What probes report and have no picture of over steps.
_HEADLINES: dict[type[Probe], tuple[Lines, ...]] = {
    InitInterpolation: (
        Lines(
            "max_rise", f"Largest rise of the loss from initialisation to checkpoint ({_LOSS})",
            "0 = the loss nowhere rises along the line. A barrier does not mean bad optimisation.", y="max_rise",
            y_label=f"max_rise ({_LOSS})", log_x=True,
            caveat="Where on the line the loss rises: see the curves of each checkpoint.",
        ),
        Lines(
            "monotonic", "Whether the loss falls from initialisation to checkpoint (1 or 0)",
            "1 = no rise beyond tolerance and sampling error. A smooth path does not mean good optimisation.",
            y="monotonic", y_label="monotonic (1 or 0)", log_x=True, caveat="How large a rise is: see max_rise.",
        ),
    ),
    LayerCKA: (
        Lines(
            "to_init_mean", "Linear CKA with the initialisation, mean over layers (no unit)",
            "1 = unchanged up to rotation and scale; below null_p95 = unrelated. A change need not be learning.",
            y="to_init_mean", y_label="to_init_mean (no unit)", log_x=True,
            caveat="Which layers have changed: see the heatmap of each layer.",
        ),
        Lines(
            "null_p95", "95th percentile of linear CKA when samples are shuffled (no unit)",
            "A similarity below it is none.", y="null_p95", y_label="null_p95 (no unit)", log_x=True,
            caveat="A quality of the model: it depends on num_samples and micro_batch_size.",
        ),
    ),
    Sharpness: (
        Lines(
            "sam", f"Rise of the loss on one step of length rho along the gradient ({_LOSS})",
            "Follows rho and the scale of the weights, so compare runs of one rho. Not a generalisation score.",
            y="sam", y_label=f"sam ({_LOSS})", log_x=True, caveat="How the loss rises in other directions.",
        ),
    ),
}  # fmt: skip


class _Keys(NamedTuple):
    """Where the runs have what is compared."""

    loss: str
    lr: str
    batch_size: str
    prefix: str

    def logged(self, key: str) -> str:
        """A key as a logger with the prefix writes it."""
        return f"{self.prefix}-{key}" if self.prefix else key


def default_probes() -> list[Probe]:
    """The four probes under their default names."""
    return [FisherTrace(), InitInterpolation(), LayerCKA(), Sharpness()]


def workspace(
    entity: str,
    project: str,
    probes: Sequence[Probe] | None = None,
    *,
    loss: str = "val/loss",
    lr: str = "lr",
    batch_size: str = "batch_size",
    prefix: str = "",
) -> Any:
    """A workspace: a section a probe, each panel with how to read it, a section on flags and one on sweeps.

    Args:
        entity: The W&B user or team.
        project: The project.
        probes: Those that the runs of the project have; the four under their default names if left out.
        loss: Key of the validation loss, without the prefix.
        lr: Key of the learning rate in the runs' config.
        batch_size: Key of the batch size in the runs' config.
        prefix: That of the runs' `WandbLogger`, which is put before every key but those of the config.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`; `save` it, or write it with `to_json`.

    Raises:
        ImportError: Without the extra `panels`.
        ValueError: If two probes have one name, or one is called "flags" or "sweep".

    Example:
        >>> [section.name for section in workspace("me", "mnist").sections]
        ['fisher', 'interpolation', 'cka', 'sharpness', 'flags', 'sweep']
    """
    _, ws = _library()
    content = _content(probes, _Keys(loss, lr, batch_size, prefix))
    sections = [ws.Section(name=name, panels=panels, is_open=True) for name, (_, panels) in content.items()]
    return ws.Workspace(entity=entity, project=project, name=f"Probes {prefix}".rstrip(), sections=sections)


def report(
    entity: str,
    project: str,
    probes: Sequence[Probe] | None = None,
    *,
    loss: str = "val/loss",
    lr: str = "lr",
    batch_size: str = "batch_size",
    prefix: str = "",
) -> Any:
    """A report template of the same panels, with a text before each group of them.

    Args:
        entity: The W&B user or team.
        project: The project.
        probes: See `workspace`.
        loss: See `workspace`.
        lr: See `workspace`.
        batch_size: See `workspace`.
        prefix: See `workspace`.

    Returns:
        A `wandb_workspaces.reports.v2.Report`; `save` it, or write it with `to_json`.

    Raises:
        ImportError: Without the extra `panels`.
        ValueError: See `workspace`.

    Example:
        >>> report("me", "mnist").title
        'What the probes measured'
    """
    wr, _ = _library()
    keys = _Keys(loss, lr, batch_size, prefix)
    blocks: list[Any] = [wr.MarkdownBlock(text=_INTRODUCTION.format(prefix=keys.logged("")))]
    for name, (text, panels) in _content(probes, keys).items():
        grid = wr.PanelGrid(runsets=[wr.Runset()], panels=panels)  # all runs of the report's own project
        blocks += [wr.H2(text=name), wr.MarkdownBlock(text=text), grid]
    title = "What the probes measured" + f" ({prefix})" * bool(prefix)
    return wr.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid")


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


def _content(probes: Sequence[Probe] | None, keys: _Keys) -> dict[str, tuple[str, list[Any]]]:
    """Text and panels of every section."""
    wr, _ = _library()
    probes = default_probes() if probes is None else probes
    names = [*(probe.name for probe in probes), "flags", "sweep"]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            "sections are named after the probes, 'flags' and 'sweep', and these names would stand for more than one: "
            f"{sorted(twice)}; give the probes another name="
        )
    content = {probe.name: (_first_paragraph(probe), list(_panels_of(probe, keys))) for probe in probes}
    table = wr.WeavePanelSummaryTable(table_name=keys.logged(FLAGS), layout=wr.Layout(w=16, h=8))
    flags = [_text(_FLAGS), table]  # the text is the title, as the table can have none
    return {**content, "flags": (_FLAGS, flags), "sweep": (_SWEEP, list(_sweep_panels(probes, keys)))}


def _panels_of(probe: Probe, keys: _Keys) -> Iterator[Any]:
    headlines = [panel for kind, panels in _HEADLINES.items() if isinstance(probe, kind) for panel in panels]
    name = keys.logged(probe.name)
    yield _text("\n\n".join(map(_reading, [*probe.panels, *headlines])))
    for panel in probe.panels:
        if (plot := panel.scalar_plot()) is not None:
            yield _plot(name, plot)
        yield _gallery(name, panel)
    for headline in headlines:
        yield _plot(name, headline.scalar_plot())


def _text(markdown: str) -> Any:
    wr, _ = _library()
    return wr.MarkdownPanel(markdown=markdown, layout=wr.Layout(w=8, h=8))


def _reading(panel: Panel) -> str:
    """How to read a panel, and what it does not show."""
    caveat = f" *Does not show:* {panel.caveat}" if panel.caveat else ""
    return f"**{panel.title}.** {panel.caption}{caveat}"


def _plot(name: str, plot: ScalarPlot) -> Any:
    """A scalar of all runs in one plot, without error bars; titled by its axes and their units."""
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
    """The picture of each run, with a slider over steps; of curves the one in colour."""
    wr, _ = _library()
    key = f"{name}/{panel.key}" + COLOURED * panel.has_lines_by_name
    return wr.MediaBrowser(title=panel.title_with_unit(), media_keys=[key], mode="gallery", gallery_axis="step")


def _sweep_panels(probes: Sequence[Probe], keys: _Keys) -> Iterator[Any]:
    wr, _ = _library()
    yield _text(_SWEEP)
    fishers = [probe for probe in probes if isinstance(probe, FisherTrace)]
    peaks = {keys.logged(f"{probe.name}/{probe.quantity}_max_at_loss"): probe for probe in fishers}
    loss = keys.logged(keys.loss)
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(keys.lr), display_name="learning rate", log=True),
        wr.ParallelCoordinatesPlotColumn(wr.Config(keys.batch_size), display_name="batch size (samples)"),
        *(
            wr.ParallelCoordinatesPlotColumn(
                wr.SummaryMetric(peak), display_name=f"{probe.name} peak at equal loss ({_TRACE_UNIT})", log=True
            )
            for peak, probe in peaks.items()
        ),
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(loss), display_name=f"{keys.loss} (final)"),
    ]
    yield wr.ParallelCoordinatesPlot(
        title="Settings, Fisher peak and validation loss of each trial (units on the axes, else as logged)",
        columns=columns,
    )
    for peak, probe in peaks.items():
        reached = "half of the first loss" if probe.at_loss is None else f"a loss of {probe.at_loss:g}"
        yield wr.ScatterPlot(
            title=f"Fisher peak until {reached} ({_TRACE_UNIT}) against final {keys.loss}, coloured by {keys.lr}, "
            "which drives both",
            x=wr.SummaryMetric(peak),
            y=wr.SummaryMetric(loss),
            z=wr.Config(keys.lr),
            log_x=True,
            log_z=True,
        )


def _first_paragraph(probe: Probe) -> str:
    return (type(probe).__doc__ or "").strip().partition("\n")[0]
