"""Where a fit's probe data comes from: the Trainer's own loaders, or what the user has passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils._pytree import tree_leaves, tree_map

from lightning_probes.probing.data.drawing import DataSource, DataSources, Drawing, ProbeSet, is_source
from lightning_probes.probing.data.loaders import as_iterated
from lightning_probes.probing.data.sharing import draw_shared
from lightning_probes.probing.processes import Processes


def find_sources(trainer: Any, asked: DataSources) -> dict[str, tuple[Any, str]]:
    """The loaders that are meant, and how they are combined: "train" and "val" from the Trainer, others as given.

    Args:
        trainer: The Trainer.
        asked: Sources by name, or a sequence of them. In a sequence a loader or dataset of the user's own stands for
            the first of "train" and "val" that no other source has.

    Returns:
        Loaders and the mode of their `CombinedLoader` by name, in the order of a mapping; of a sequence "train" first.
        What the run does not have, such as validation data, is left out.

    Raises:
        MisconfigurationException: If nothing is left to measure on; the message names `data`.
    """
    found: dict[str, tuple[Any, str]] = {}
    for name, source in (asked if isinstance(asked, Mapping) else _named(asked)).items():
        loaders, mode = _loaders(trainer, source) if isinstance(source, str) else (source, "max_size_cycle")
        if loaders is not None:
            found[name] = loaders, mode
    if not found:
        sources = asked.values() if isinstance(asked, Mapping) else asked
        raise MisconfigurationException(
            f"this run has no {' or '.join(map(repr, sources))} data: pass data='train', a DataLoader or a Dataset"
        )
    return found


def _named(sources: Sequence[DataSource]) -> dict[str, DataSource]:
    named: dict[str, DataSource] = {}
    taken: set[str] = {source for source in sources if isinstance(source, str)}
    for source in sources:
        name = source if isinstance(source, str) else next((n for n in ("train", "val") if n not in taken), "")
        if not name or name in named:
            raise MisconfigurationException(
                "data= takes one source for the training samples and one for validation: pass more of them by name, "
                "such as data={'train': 'train', 'shifted': loader}"
            )
        taken.add(name)
        named[name] = source
    return dict(sorted(named.items(), key=lambda item: item[0] != "train"))


def draw_probe_sets(
    found: Mapping[str, tuple[Any, str]], drawing: Drawing, processes: Processes
) -> dict[str, ProbeSet]:
    """Draw a set from each of these loaders, in all processes together.

    Returns:
        Probe sets by name. Empty ones are left out, but for the first.

    Raises:
        MisconfigurationException: If there are no samples, or too few; the message names `data`.
    """
    sets: dict[str, ProbeSet] = {}
    for name, (loaders, mode) in found.items():
        drawn = draw_shared(drawing, loaders, mode, processes)
        if drawn is not None:
            sets[name] = drawn
        elif drawing.alike:
            raise MisconfigurationException(
                f"training exchanges tensors between processes, and {name} data can't be split across {processes.size} "
                "of them in as many micro-batches of one size: pass a larger num_samples=, data= with more batches of "
                "one size, or loss_fn= (or predict_fn=) that exchanges nothing"
            )
        elif name == next(iter(found)):
            raise MisconfigurationException("the probe data is empty: pass a loader with at least one sample as data=")
    return sets


def has_loader(trainer: Any, name: str) -> bool:
    """Whether the run has data called "train" or "val"."""
    return _loaders(trainer, name)[0] is not None


def _loaders(trainer: Any, name: str) -> tuple[Any, str]:
    if name not in ("train", "val"):
        raise MisconfigurationException(
            f"data={name!r} is unknown: pass 'train', 'val', a DataLoader or a Dataset as data="
        )
    loop = trainer.fit_loop if name == "train" else trainer.fit_loop.epoch_loop.val_loop
    combined = getattr(loop, "_combined_loader", None)
    if combined is None:
        return None, ""
    loaders = getattr(combined, "iterables", combined)  # of the CombinedLoader of either Lightning
    if isinstance(loaders, (list, tuple)) and len(loaders) == 1 and name == "val":
        loaders = loaders[0]
    loaders = tree_map(as_iterated, loaders, is_leaf=is_source)
    empty = loaders is None or (isinstance(loaders, (list, tuple, dict)) and not loaders)
    return (None if empty else loaders), combined._mode


def overfit_samples(trainer: Any) -> int | None:
    """How many samples `Trainer(overfit_batches=...)` leaves to train on; None without it."""
    if not trainer.overfit_batches:
        return None
    sizes = [getattr(loader, "batch_size", None) or 1 for loader in tree_leaves(trainer.train_dataloader)]
    return int(trainer.num_training_batches) * max(sizes)
