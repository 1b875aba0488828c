"""A long measurement shows how far it is in the Trainer's own bar, and leaves that as it was."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar, TQDMProgressBar

from lightning_probes.probing.run.progress_bar import shown_in_bar
from tests.callbacks.models import Supervised, classification, loader, trainer


class Long(Callback):
    """Measures in the middle of an epoch and at the end of the fit, and notes what the bar says."""

    def __init__(self, error: type[BaseException] | None = None) -> None:
        self.seen: list[list[str]] = []
        self.error = error

    def measure(self, bar: Any) -> None:
        said: list[str] = []
        self.seen.append(said)

        def note() -> None:
            task = getattr(bar, "train_progress_bar", None)
            said.append(getattr(task, "desc", None) or getattr(task, "description", "") or "")

        note()
        try:
            with shown_in_bar(bar, "plane", 400) as show:
                for done in range(1, 401):
                    show(done)
                    note()
                    if self.error is not None and done == 100:
                        raise self.error
        except KeyboardInterrupt:
            pass
        note()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.measure(trainer.progress_bar_callback)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.measure(trainer.progress_bar_callback)


def run(bar: Any, error: type[BaseException] | None = None) -> list[list[str]]:
    import torch

    torch.manual_seed(0)
    long = Long(error)
    callbacks = [long] if bar is None else [long, bar]
    shown = {"enable_progress_bar": bar is not None}
    trainer(max_epochs=1, callbacks=callbacks, **shown).fit(
        Supervised(torch.nn.Linear(4, 3)), loader(*classification())
    )
    return long.seen


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_the_bar_says_how_far_a_measurement_is_and_then_what_it_said_before(kind: Any, error: Any) -> None:
    if kind is RichProgressBar:
        pytest.importorskip("rich")
    for said in run(kind(), error):
        assert said[0].startswith("Epoch 0")
        assert said[-1] == said[0]
        assert said[100].startswith("Epoch 0")
        assert "(plane 25%)" in said[100]
        if error is None:
            assert "(plane 100%)" in said[400]


@pytest.mark.parametrize("bar", [None, TQDMProgressBar(refresh_rate=0), ProgressBar()])
def test_without_a_bar_that_is_known_nothing_is_shown(bar: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert all("plane" not in text for said in run(bar) for text in said)
    assert "plane" not in capsys.readouterr().out


def test_a_bar_is_drawn_again_at_each_percent_at_most() -> None:
    class Bar:
        is_enabled = True
        written: list[str] = []  # noqa: RUF012

        class _train_progress_bar:
            desc = "Epoch 3: "
            set_description_str = staticmethod(lambda text: Bar.written.append(text))

    with shown_in_bar(Bar(), "plane", 10_000) as show:
        for done in range(1, 10_001):
            show(done)
    assert len(Bar.written) == 102
    assert Bar.written[50:51] + Bar.written[-2:] == ["Epoch 3 (plane 50%): ", "Epoch 3 (plane 100%): ", "Epoch 3: "]
