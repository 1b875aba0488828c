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

_RATIO = Reading(
    seen="This is the norm of what a block adds over the norm of the stream it adds to, the median over samples and "
    "blocks.",
    usual="In two networks of 24 blocks of ReLUs without normalisation it was 0.20 at initialisation in the one that "
    "trained and 0.97 in the one that did not.",
    check="Check the heatmap for single blocks, because a median hides a block that adds nothing or too much.",
    attempt="Try a branch scale of one over the square root of the depth, or a pre-norm block, if it is far above 1.",
)
RESIDUAL_FLOW: Mapping[str, Reading] = {
    "ratio_median": _RATIO,
    "ratio_max": Reading(
        seen="This is the largest ratio of branch to skip connection among all blocks.",
        usual="It can be that of a transformer's first block, whose skip connection is an embedding of small norm.",
        check="Check in the heatmap which block it is, and ratio_p95 for single samples.",
        attempt="Try a smaller scale of that branch if it grows while the loss is unstable.",
    ),
    "path_length": Reading(
        seen="This is the length of the way through the longest stage of the stream, over the distance of its ends.",
        usual="Equal blocks in independent directions give about the square root of their number, and blocks in one "
        "direction 1; a network of 24 blocks that trained well rose from 1.7 to 2.4.",
        check="Check turn, which says whether successive blocks oppose each other.",
        attempt="Try fewer blocks if the way is long and the loss does not need them.",
    ),
    "turn": Reading(
        seen="This is the cosine of the angle between what a block adds and what the block before it adds.",
        usual="It is near 0 for independent branches without ReLUs at their end, because random directions are nearly "
        "orthogonal.",
        check="Check path_length, because blocks that undo one another make a long way.",
        attempt="Look at the heatmap of the ratio for a pair of large blocks if it is far below 0.",
    ),
    "blocks": Reading(
        seen="This is the number of residual additions in a pass.",
        usual="It is constant: one per block in a residual network, two per layer in a transformer.",
        check="Check that it is the number that you expect; the run's config has the names of the blocks.",
        attempt="Look for gated skips and concatenations if it is too small, because these are no residual additions.",
    ),
    "cls/*": Reading(
        seen="This is the same for the first token, which stands for the sample.",
        usual="In a vision transformer on MNIST-1D it differed from the other tokens only in the first block, where "
        "this token starts near 0.",
        check="Check that the first token is the one that the head reads.",
        attempt="Try tokens='flatten' if the model has no such token.",
    ),
}

GRADIENT_FLOW: Mapping[str, Reading] = {
    "decades": Reading(
        seen="This is the logarithm to base 10 of the gradient norm at the first layer over that at the last.",
        usual="It is between -1 and +0.5 in networks that train well; plain ReLU networks of 24 layers reached a "
        "training accuracy of 0.11 with SGD at -4 and 0.26 at -0.3.",
        check="Check the curve over depth, and dead for samples that no gradient reaches.",
        attempt="Try He initialisation, normalisation or skip connections if it is far from 0.",
    ),
    "slope": Reading(
        seen="This is the change of the logarithm of the gradient norm from one layer to the next, by least squares.",
        usual="It is near 0; a plain ReLU network whose weights have gain g has -log10(g / sqrt 2).",
        check="Check decades, because what counts is the slope times the depth.",
        attempt="Try another gain of the initialisation, or a normalisation, if decades is far from 0.",
    ),
    "stream_decades": Reading(
        seen="This is the same for activations: the logarithm of their norm at the last layer over that at the first.",
        usual="It is near 0 in normalised networks; saturating units keep it near 0 while gradients explode.",
        check="Check decades beside it, because either can change without the other.",
        attempt="Try a smaller branch scale or a normalisation if it is large.",
    ),
    "dead": Reading(
        seen="This is the share of samples for which no gradient reaches the first layer.",
        usual="It is 0 unless a loss has a margin that most samples have passed, or units are dead.",
        check="Check the share of zero outputs of the ReLUs, and whether the loss itself is zero.",
        attempt="Try a lower learning rate, or leaky units, if it grows.",
    ),
    "flag/vanishing": Reading(
        seen="The gradient loses more decades on the way back than the threshold.",
        usual="Networks of 24 plain ReLU layers beyond -3 decades did not train with SGD; Adam forgave about 3.",
        check="Check the curve over depth, and whether the loss falls anyway.",
        attempt="Try a larger gain of the initialisation, normalisation, or skip connections.",
    ),
    "flag/exploding": Reading(
        seen="The gradient gains more decades on the way back than the threshold.",
        usual="Networks beyond +1.5 decades did not train with SGD; with Adam they reached half of the accuracy.",
        check="Check stream_decades, and whether the loss is finite.",
        attempt="Try a smaller gain of the initialisation, a branch scale below 1, or a lower learning rate.",
    ),
}
