"""Micro-batches of the sizes that the user's code needs, determined before the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lightning_probes.probing.collectives import exchanges
from lightning_probes.probing.isolation.writes import is_written
from lightning_probes.probing.processes import Processes, is_out_of_memory
from lightning_probes.probing.run.halving import ProbeSets, Samples, same_mean_loss
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView

Look = Callable[[ProbeSets], ModelView]


def suit(samples: Samples, look: Look, processes: Processes, say: Speaker) -> None:
    """Draw the samples again if the user's code fails on them, or computes something else than in training.

    - If it exchanges tensors between processes, all processes get the same number of micro-batches, of one size.
    - If the loss depends on the batch size (a queue, hidden states kept between batches, negatives from the batch),
      micro-batches have the size of training batches.

    Args:
        samples: The probe's data.
        look: Makes a view of the model with given data.
        processes: The processes; all of them take part.
        say: Reports what was done.

    Raises:
        MisconfigurationException: If the processes can't have the same number of micro-batches; the message names
            `num_samples`.
    """
    if processes.size > 1 and processes.any(exchanges(look(samples.sets))):
        samples.redraw(alike=processes.size)
        found = {split: len(probe_set.batches) for split, probe_set in samples.sets.items()}
        counts = " and ".join(f"{number} of {split} data" for split, number in found.items())
        say.info(
            "training exchanges tensors between processes, so each process measures on the same number of "
            f"micro-batches: {counts}, of at most {samples.largest} samples"
        )
    unlike = samples.unlike_training
    if unlike is None or not look(samples.sets).has_loss():
        return
    size = unlike.first.in_training
    if suit_to_state(samples, look, processes, say):
        return
    if processes.any(_depends_on_size(samples, look)):
        if min(unlike.sizes) < unlike.num_samples:
            samples.redraw(full=True)
            say.info(f"the loss depends on the batch size: micro-batches have {size} samples, as in training")
        else:
            say.info(
                f"the loss depends on the batch size, and the {unlike.num_samples} samples are fewer than a training "
                f"batch: pass num_samples={size} to measure on batches of that size"
            )


def suit_to_state(samples: Samples, look: Look, processes: Processes, say: Speaker) -> bool:
    """Use micro-batches of the training size if the loss fails on other sizes; returns whether that was necessary."""
    unlike = samples.unlike_training
    if unlike is None or samples.full or not processes.any(not _runs(look(samples.sets))):
        return False
    samples.redraw(full=True)
    if processes.any(not _runs(look(samples.sets))):  # the size is not the cause
        samples.redraw(full=False)
        return False
    size, needed = unlike.first.size, unlike.first.in_training
    say.info(f"the loss can't be computed on {size} samples: using {needed}, as training does")
    return True


def _runs(view: ModelView) -> bool:
    try:
        for split in view.data:
            view.detached.loss(view.scratch(), view.probe_set(split).first)
    except Exception as error:
        if is_written(error):
            raise
        return is_out_of_memory(error)
    return True


def _depends_on_size(samples: Samples, look: Look) -> bool:
    try:
        pairs, singles = (replace(look(samples.few_each(size)), processes=Processes()) for size in (2, 1))
        return not same_mean_loss(pairs, singles)
    except Exception as error:
        if is_written(error):
            raise
        return not is_out_of_memory(error)
