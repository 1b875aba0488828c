"""What the callbacks in this family draw: their panels, and their numbers over steps for a workspace."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_probes.reporting import Curves, Lines, Panel, Surfaces

_FROM_INIT = "A smooth path does not mean good optimisation. A barrier does not mean bad optimisation."
_BESIDE = "The path that training took. This is the loss on a straight line, not beside it."
_CURVES = {"loss": "loss (unit of training)", "accuracy": "accuracy (share)"}
_LOSS_UNIT = "unit of the training loss"


def curve_panels(sets: Mapping[str, str]) -> tuple[Curves, ...]:
    """Loss and accuracy on some probe sets.

    Args:
        sets: What titles call the samples, by the prefix of their keys.
    """
    return tuple(
        Curves(
            f"{prefix}{key}", f"{samples} {what} from initialisation to checkpoint", _FROM_INIT,
            start="initialisation", caveat=_BESIDE,
        )
        for key, what in _CURVES.items()
        for prefix, samples in sets.items()
    )  # fmt: skip


INIT_INTERPOLATION_PANELS = curve_panels({"": "Training", "val/": "Validation"})
INIT_INTERPOLATION_HEADLINES = (
    Lines(
        "max_rise", f"Largest rise of the loss from initialisation to checkpoint ({_LOSS_UNIT})",
        "0 = the loss never rises along the line. A barrier does not mean bad optimisation.", y="max_rise",
        y_label=f"max_rise ({_LOSS_UNIT})", log_x=True,
        caveat="Where on the line the loss rises. See the curve of each checkpoint.",
    ),
    Lines(
        "monotonic", "Whether the loss falls from initialisation to checkpoint (1 or 0)",
        "1 = no rise beyond tolerance and sampling error. A smooth path does not mean good optimisation.",
        y="monotonic", y_label="monotonic (1 or 0)", log_x=True, caveat="How large a rise is. See max_rise.",
    ),
)  # fmt: skip

LINEARIZED_HEADLINE = Lines(
    "linearized_error", "Distance of the linearised network's logits, over how far the logits have moved",
    "0 = training was lazy: the network is its expansion about the initialisation. Neither good nor bad.",
    y="linearized_error", y_label="linearized_error (no unit)", log_x=True,
    caveat="How well the expansion does. See linearized_accuracy.",
)  # fmt: skip

_UPWARDS = "The largest height over the dashed chord is the barrier. There may be a way round it."
_STRAIGHT = "Whether there is a way round: this is the loss on the straight line alone."
_BETWEEN = {  # by the prefix of the keys
    "": "between this run and the other",
    "aligned/": "between this run and the other, units matched",
    "repaired/": "between this run and the other, units matched, repaired",
}
_CROSSING = {
    "init_to_other/loss": "from this run's initialisation to the other run",
    "other_init_to_run/loss": "from the other run's initialisation to this run",
}
_BOUND = "An upper bound: there may be a path that lies lower. More path_steps find lower ones."
_SPENT = "How low a path there is: this is the lowest that was found, with the passes in path/passes."
_PERMUTED = "Units may be numbered in another order in the other run, which makes a barrier between equal functions."

_BARRIERS = (
    Lines(
        "barrier_over_steps", "Barrier between this run and the other",
        "0 = the loss on the straight line is nowhere above the chord between the two ends.", y="barrier",
        together=(("barrier", "as trained"), ("aligned/barrier", "units matched")),
        y_label=f"barrier ({_LOSS_UNIT})", log_x=True, caveat=_PERMUTED, detail=True,
    ),
    Lines(
        "error_barrier_over_steps", "Barrier of the error between this run and the other",
        "Below 2 % two runs count as linearly connected (Frankle et al. 2020).", y="error_barrier",
        together=(("error_barrier", "as trained"), ("aligned/error_barrier", "units matched")),
        y_label="barrier of the error (share of targets)", log_x=True,
        reference=(0.02, "2 %"), caveat=_PERMUTED, detail=True,
    ),
)  # fmt: skip


def connectivity_panels(sets: Mapping[str, str]) -> tuple[Panel, ...]:
    """Barriers over steps, then the curves of each event.

    Args:
        sets: What titles call the samples, by the prefix of their keys.
    """
    first = next(iter(sets.values()))
    what = {"loss": "loss (unit of training)", "error": "error (share)"}
    titles = {
        f"{line}{prefix}{key}": f"{samples} {name} {where}"
        for line, where in {**_BETWEEN, "path/": "on the path to the other run"}.items()
        for key, name in what.items()
        for prefix, samples in sets.items()
    } | {key: f"{first} {what['loss']} {where}" for key, where in _CROSSING.items()}
    details = {key for key in titles if key.endswith("error") or any(p and f"{p}loss" in key for p in sets)}
    return _BARRIERS + tuple(
        Curves(
            key, title, _BOUND if key.startswith("path/") else _UPWARDS, chord=True, detail=key in details,
            caveat=_SPENT if key.startswith("path/") else _STRAIGHT,
        )
        for key, title in titles.items()
    )  # fmt: skip


MODE_CONNECTIVITY_PANELS = connectivity_panels({"": "Training", "val/": "Validation"})
MODE_CONNECTIVITY_HEADLINES = (
    Lines(
        "aligned_barrier_over_steps", "Barrier between this run and the other, units matched",
        "0 = the loss on the straight line between matched runs is nowhere above the chord.", y="aligned/barrier",
        y_label=f"aligned/barrier ({_LOSS_UNIT})", log_x=True,
        caveat="Whether another order of the units does better: the best one is not always found.",
    ),
)  # fmt: skip

DROPOUT_STABILITY_PANELS = (
    Lines(
        "rise_over_steps", f"Rise of the loss without half of the units of each layer ({_LOSS_UNIT})",
        "0 = half of the network does as well as the whole. The band is two standard errors over random halves.",
        y="rise", y_label=f"rise ({_LOSS_UNIT})", log_x=True,
        caveat="Other halves: a rise of the mean does not exclude that some half does.",
    ),
    Lines(
        "best_over_steps", f"Rise of the loss for the best half that was tried ({_LOSS_UNIT})",
        "An upper bound for the best of all halves.", y="rise_best", y_label=f"rise_best ({_LOSS_UNIT})", log_x=True,
        detail=True,
        caveat="How far the best of all halves lies below.",
    ),
)  # fmt: skip

LOSS_PLANE_PANELS = (
    Surfaces(
        "loss", "Loss on a plane through the weights (unit of training)",
        "Contours by the logarithm of the loss. A plane is two directions of very many.", log=True,
        caveat="All other directions: a plane that looks convex proves nothing about the loss beside it.",
    ),
)  # fmt: skip
LOSS_PLANE_HEADLINES = (
    Lines(
        "nonconvexity", "How far the loss is from convex on a plane (share)",
        "0 = convex on the plane, 1 = it bends down at least as much as up. Not a generalisation score.",
        y="nonconvexity", y_label="nonconvexity (share)", log_x=True,
        caveat="Where on the plane the loss bends down: see the surface.",
    ),
    Lines(
        "kink_gap", "Change of the gradient that the Hessian does not see (share)",
        "About 0 for smooth activations; ReLUs switch within the step.", y="kink_gap", y_label="kink_gap (share)",
        log_x=True, caveat="Other directions and steps: a kink is met or not.",
    ),
)  # fmt: skip
