"""Draws the pictures of docs/panels.md and of the HTML report, from a run of the quickstart, by a headless Chromium.

python examples/panels_pictures.py        # trains for about a minute; writes docs/panels/*.png and docs/report.png
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from quickstart import ConvNet, loaders

from lightning_probes import FisherTrace, HTMLReport, InitInterpolation, LayerCKA, Probe, Sharpness

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, HEIGHT = 700, 450
# The report on a screen, and beside it on a phone in dark mode.
DEVICES = """<body style="margin: 0; padding: 16px; display: flex; gap: 16px; background: #ddd">
<style>iframe { border: 0; height: 1568px }</style>
<iframe src="report.html" scrolling="no" style="width: 1160px; background: white"></iframe>
<iframe src="report.html?" scrolling="no" style="width: 390px; color-scheme: dark"></iframe>"""
TALL = ("interpolation/loss", "cka/layers", "cka/to_init")  # have a slider below, or names of layers
ALIKE = ("interpolation/val/loss", "interpolation/accuracy", "interpolation/val/accuracy")  # look like the first


def train(folder: Path, epochs: int = 20) -> list[Probe]:
    """The probes at their defaults, after a fit."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    probes: list[Probe] = [FisherTrace(), InitInterpolation(), LayerCKA(), Sharpness()]
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        callbacks=[*probes, ModelCheckpoint(folder, save_top_k=-1), HTMLReport(folder / "report.html")],
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(ConvNet(), *loaders())
    return probes


def draw(probe: Probe, key: str, folder: Path) -> None:
    """One figure as a PNG."""
    page, height = folder / "figure.html", HEIGHT + 150 * (key in TALL)
    probe.figure(key).write_html(
        page, default_width=f"{WIDTH}px", default_height=f"{height}px", config={"staticPlot": True}
    )
    page.write_text(page.read_text().replace("<body>", '<body style="margin:0">'))
    photograph(page, WIDTH, height, DOCS / "panels" / f"{key.replace('/', '-')}.png")


def photograph(page: Path, width: int, height: int, target: Path) -> None:
    """A page as a PNG."""
    browser = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000",
            f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},{height}", f"--screenshot={target}",
            page.as_uri(),
        ],
        check=True, capture_output=True,
    )  # fmt: skip


def main() -> None:
    """Train, and draw each kind of picture that W&B is sent."""
    (DOCS / "panels").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for probe in train(folder):
            for panel in probe.panels:
                key = f"{probe.name}/{panel.key}"
                if key not in ALIKE:
                    draw(probe, key, folder)
        devices = folder / "devices.html"
        devices.write_text(DEVICES)
        photograph(devices, 1598, 1600, DOCS / "report.png")


if __name__ == "__main__":
    main()
