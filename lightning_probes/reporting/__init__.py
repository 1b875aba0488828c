"""Report results: draw them as figures, and send each event to every logger of the Trainer, W&B first."""

from lightning_probes.reporting.event import Event, Picture, pictures
from lightning_probes.reporting.extreme import Extreme
from lightning_probes.reporting.panels.base import Panel, worth_redrawing
from lightning_probes.reporting.panels.curves import Curves
from lightning_probes.reporting.panels.heatmap import HeatmapOverSteps, Heatmaps
from lightning_probes.reporting.panels.lines import Lines
from lightning_probes.reporting.panels.surface import Surfaces
from lightning_probes.reporting.reporter import alert, log_event, record_settings, write_summary

__all__ = [
    "Curves",
    "Event",
    "Extreme",
    "HeatmapOverSteps",
    "Heatmaps",
    "Lines",
    "Panel",
    "Picture",
    "Surfaces",
    "alert",
    "log_event",
    "pictures",
    "record_settings",
    "worth_redrawing",
    "write_summary",
]
