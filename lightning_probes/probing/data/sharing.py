"""One probe set over several processes, also if each process reads its own shard of the data."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

from lightning_probes.probing.data.batches import MicroBatch, ProbeSet
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.processes import Processes


def draw_shared(drawing: Drawing, loaders: Any, mode: str, processes: Processes) -> ProbeSet | None:
    """Draw a set whose sizes are known to all processes.

    If the processes read the same data, or equal amounts of it, the micro-batches are split across them. Otherwise
    (files of different length, for instance) each process draws its share of `num_samples` from its own data, and the
    set is the union.

    Args:
        drawing: How to draw.
        loaders: See `Drawing.draw`.
        mode: See `Drawing.draw`.
        processes: The processes; all of them draw.

    Returns:
        This process's share; None in all processes if one of them has no data.
    """
    batches = drawing.read(loaders, mode)
    sizes = processes.everyone([batch.size for batch in batches])
    if not all(sizes):
        return None
    if all(each == sizes[0] for each in sizes):
        mine = [batch for batch in batches if batch.index % processes.size == processes.rank]
        return ProbeSet(mine, sizes[0], batches[0].ready)
    return _own_shares(drawing, loaders, mode, processes)


def _own_shares(drawing: Drawing, loaders: Any, mode: str, processes: Processes) -> ProbeSet | None:
    share = math.ceil(drawing.num_samples / processes.size)
    own = replace(drawing, rank=0, world_size=1, num_samples=share, alike=min(1, drawing.alike))
    batches = own.read(loaders, mode)
    sizes = processes.everyone([batch.size for batch in batches])
    if drawing.alike and all(sizes):
        smallest = min(itertools.chain.from_iterable(sizes))
        batches = replace(own, micro_batch_size=smallest).read(loaders, mode)
        batches = batches[: min(processes.everyone(len(batches)))]
        sizes = processes.everyone([batch.size for batch in batches])
        if any(each != sizes[0] for each in sizes):  # whole batches of different sizes
            return None
    if not all(sizes):
        return None
    before = sum(map(len, sizes[: processes.rank]))
    # All processes must agree on it, also if one of them has less than a batch.
    in_training = max(processes.everyone(batches[0].in_training or 0)) or None
    mine: list[MicroBatch] = [replace(batch, index=before + batch.index, in_training=in_training) for batch in batches]
    return ProbeSet(mine, [*itertools.chain.from_iterable(sizes)], mine[0].ready)
