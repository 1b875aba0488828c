"""Batches that training skips."""

from __future__ import annotations

from dataclasses import replace

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_probes.probing.checks import check_loss
from lightning_probes.probing.data.drawing import ProbeSet
from lightning_probes.probing.view import ModelView


def leave_out_skipped(view: ModelView, split: str | None = None) -> None:
    """Leave out of a probe set the micro-batches that `training_step` returns None for: they have no loss.

    What is skipped at a later step only, as where a loss is not finite, or where all are skipped, or some in some
    processes only, has a loss that is not finite. Cost: a forward pass over the set.
    """
    if view.objective.loss_fn is not None:
        return
    name = next(iter(view.data)) if split is None else split
    whole = view.probe_set(name)
    skipped = view.per_batch(lambda batch: torch.tensor(float(view.detached.skips(batch))), name).tolist()
    kept = [index for index, is_skipped in enumerate(skipped) if not is_skipped]
    if len(kept) in (0, len(skipped)):
        return
    place = {index: place for place, index in enumerate(kept)}
    batches = [
        replace(batch, index=place[batch.index], number=batch.key) for batch in whole.batches if batch.index in place
    ]
    numbers = torch.tensor([len(whole.batches), len(batches)], device=view.processes.device)
    before, after = torch.stack(view.processes.gather(numbers)).T.tolist()
    if len(set(before)) == 1 < len(set(after)):  # training may exchange tensors, and each process needs as many then
        return
    # The first one of the whole set is the one that every process has.
    first = batches[0] if view.processes.size == 1 else whole.first
    view.data[name] = ProbeSet(batches, [whole.sizes[index] for index in kept], first)
    rank_zero_info(
        f"{name} data: training_step returned None for {len(skipped) - len(kept)} of {len(skipped)} micro-batches, "
        "which are left out"
    )
    if first.key != whole.first.key:
        check_loss(view, split)
