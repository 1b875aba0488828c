"""How to read the results of the callbacks in this family."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_probes.reporting.readings import Reading

_NORM = Reading(
    seen="The norm of the gradient is the largest slope of the loss, per unit length of weights, at one step.",
    usual="It differs between batches by a factor of two or so, and falls or rises slowly over training.",
    check="Check the loss and the learning rate at the same steps, and which layer a jump comes from.",
    attempt="Try gradient clipping somewhat above the usual level, a longer warm-up or a smaller learning rate if the "
    "norm jumps by powers of ten.",
)
_UPDATE_RATIO = Reading(
    seen="The ratio says by what share of their length the weights change in one step.",
    usual="Values near 0.001 are a common rule of thumb, not a law; it falls with the learning rate.",
    check="Check that weight decay and layers before normalisation do not decide it.",
    attempt="Try a smaller learning rate if it stays above 0.01, and a larger one if it stays below 0.00001.",
)
_ZEROS = Reading(
    seen="This share of the gradient's entries is exactly 0, so these weights only move by momentum or weight decay.",
    usual="With ReLU some share is usual; rows of an embedding that a batch does not use are 0 as well.",
    check="Check which layers have small norms.",
    attempt="Try a smaller learning rate or another activation if the share rises to 1 in a layer.",
)
GRADIENT_NORMS: Mapping[str, Reading] = {
    "global_norm": _NORM,
    "update_ratio": _UPDATE_RATIO,
    "zeros": _ZEROS,
    "layer/*": Reading(
        seen="This is the norm of the gradient of one layer's own parameters.",
        usual="Layers differ by a power of ten or more, because norms grow with a layer's inputs and size.",
        check="Compare a layer with itself over steps.",
        attempt="Try GradientFlow to see whether the signal vanishes on the way back: weight gradients can hide it.",
    ),
    "clip_factor": Reading(
        seen="Clipping multiplied the norm of the gradient by this factor.",
        usual="1 at most steps, and less at single steps, if clipping only cuts off peaks.",
        check="If it is below 1 at every step, clipping sets the step length, as a smaller learning rate would.",
        attempt="Try a larger gradient_clip_val if it is always below 1.",
    ),
    "flag/skipped": Reading(
        seen="A gradient was not finite in float16, so the gradient scaler left out the step.",
        usual="Usual at the first steps, and rarely later, while the scaler looks for the largest scale that works.",
        check="Check that it stays rare: many skipped steps in a row mean that training stands still.",
        attempt="Try bf16-mixed precision.",
    ),
    "optimizer/*/global_norm": _NORM,
    "optimizer/*/update_ratio": _UPDATE_RATIO,
    "optimizer/*/zeros": _ZEROS,
}
