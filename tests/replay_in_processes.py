"""A replay in several processes: `python -m tests.replay_in_processes DIRECTORY STRATEGY PROCESSES`.

Every process writes what it has measured to `DIRECTORY/<rank>.json`. STRATEGY "none" passes no Trainer.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from lightning_probes.replay import replay
from tests.test_replay import data, made, probes


def main(directory: Path, strategy: str, processes: int) -> None:
    """Replay what is in `DIRECTORY/run`."""
    torch.set_num_threads(1)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = None if strategy == "none" else L.Trainer("cpu", strategy=strategy, devices=processes, **quiet)
    measuring = probes()
    replay(measuring, made().module, directory / "run", data(), trainer=trainer, directory=directory / "kept")
    rank = os.environ.get("LOCAL_RANK", "0")
    (directory / f"{rank}.json").write_text(json.dumps({each.name: each.history for each in measuring}))
    if dist.is_initialized():  # gloo's threads that outlive the interpreter can abort the process as it ends
        gc.collect()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
