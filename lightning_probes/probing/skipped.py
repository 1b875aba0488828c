"""Batches that training skips."""

from __future__ import annotations

from dataclasses import replace

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_probes.probing.checks import check_loss
from lightning_probes.probing.data.drawing import ProbeSet
from lightning_probes.probing.view import ModelView


def leave_out_skipped(view: ModelView, split: str | None = None) -> None:
    """Remove the micro-batches for which `training_step` returns None from a probe set: they have no loss.

    The set stays complete if all micro-batches are skipped, or if the number of skipped ones differs between processes.
    A micro-batch that is skipped later, or stays in the set although it is skipped, has a loss that is not finite.
    Cost: a forward pass over the set.
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
    plan = [replace(batch, index=place[batch.index], number=batch.key) for batch in whole.plan if batch.index in place]
    numbers = torch.tensor([len(whole.plan), len(plan)], device=view.processes.device)
    before, after = torch.stack(view.processes.gather(numbers)).T.tolist()
    if len(set(before)) == 1 < len(set(after)):  # an exchange of tensors needs equal numbers
        return
    # Only the first micro-batch of the whole set is on every process.
    first = plan[0].ready if view.processes.size == 1 else whole.first
    view.data[name] = ProbeSet(plan, [whole.sizes[index] for index in kept], first)
    rank_zero_info(
        f"{name} data: training_step returned None for {len(skipped) - len(kept)} of {len(skipped)} micro-batches, "
        "which are left out"
    )
    if first.key != whole.first.key:
        check_loss(view, split)
