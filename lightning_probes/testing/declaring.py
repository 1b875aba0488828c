"""Claim: the declared price of the callback is correct, and all its headline results have readings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from lightning_probes.functional.tracing.functions import tensors
from lightning_probes.probing.price import Price, least_passes, most_passes
from lightning_probes.reporting.readings import reading_of
from lightning_probes.results import Flag, Scalar
from lightning_probes.testing.fitting import fit
from lightning_probes.testing.measuring import Method, put_around
from lightning_probes.testing.subject import Subject
from lightning_probes.testing.zoo import Case

_ROUNDING = 1e-6


def declaring(subject: Subject, case: Case) -> None:
    """Each event takes the declared number of passes, and each flag and each headline number has a reading."""
    one_set = "data" in subject.takes and "data" not in subject.arguments
    callback = subject.make(case, **({"data": "train"} if one_set else {}))
    taken = count_passes(callback)
    with TemporaryDirectory() as directory:
        fit(case.make, [callback], Path(directory))
    price = callback.price
    assert price is not None or not subject.has_data, (
        "it declares no price: set the passes over its samples per event, e.g. "
        "`price = (Price(forward=1, backward=1),)`"
    )
    _check_passes(taken, price or ())
    check_readings(callback)


def _check_passes(counts: Sequence[tuple[float, float]], price: Sequence[Price]) -> None:
    for number, what in enumerate(("forward", "backward")):
        least, most = least_passes(price)[number], most_passes(price)[number]
        for passes in (count[number] for count in counts):
            assert least - _ROUNDING <= passes <= most + _ROUNDING, (
                f"an event took {passes:g} {what} passes over its samples, but its price declares "
                f"{least:g}{'' if least == most else f' to {most:g}'}"
            )


def check_readings(callback: Any) -> None:
    """Check that each flag and each headline number has a reading. Details need none."""
    for key, result in callback.results.items():
        headline = isinstance(result, Flag) or (isinstance(result, Scalar) and not result.detail)
        relative = key.removeprefix(f"{callback.name}/")
        assert not headline or reading_of(callback.readings, relative) is not None, (
            f"{relative!r} has no reading: add readings[{relative!r}] = Reading(seen=..., usual=..., check=..., "
            "attempt=...), or report it as Scalar(..., detail=True)"
        )
    for key, reading in callback.readings.items():
        empty = [name for name, sentence in vars(reading).items() if not sentence.strip()]
        assert not empty, f"readings[{key!r}] has an empty sentence: {empty[0]}="


def count_passes(callback: Any) -> list[tuple[float, float]]:
    """A list to which each event appends its number of forward and backward passes over its samples.

    The samples of an intervention are the batch that is trained on.
    """
    taken: list[tuple[float, float]] = []

    def counted(measure: Method, view: Any) -> Any:
        if not hasattr(view, "module"):  # a monitor, which can't make a pass
            return measure(view)
        seen = {"forward": 0, "backward": 0}

        def returned(module: Any, inputs: Any, output: Any) -> None:
            found = next((tensor for tensor in tensors(output) if tensor.ndim), None)  # beside a loss, the logits
            if found is not None:
                seen["forward"] += len(found)
                if found.requires_grad:
                    found.register_hook(differentiated)  # type: ignore[no-untyped-call]

        def differentiated(gradient: Tensor) -> None:
            seen["backward"] += len(gradient)

        handle = view.module.register_forward_hook(returned)
        try:
            results = list(measure(view))
        finally:
            handle.remove()
        samples = view.probe_set().num_samples if hasattr(view, "probe_set") else extract_batch_size(view.batch)
        taken.append((seen["forward"] / samples, seen["backward"] / samples))
        return results

    put_around(callback, counted)
    return taken
