"""How to read the results of the callbacks in this family."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_probes.reporting.readings import Reading

_TRACE = Reading(
    seen="The trace of the Fisher information shows how sensitive the predictions are to the weights.",
    usual="It usually rises early and then levels off; with a small learning rate it rises further, which correlates "
    "with worse generalisation (Jastrzebski et al. 2021, on CIFAR, TinyImageNet and ImageNet).",
    check="Compare runs at equal loss instead of equal step, and only with the same architecture and loss function.",
    attempt="Try a larger learning rate, or a penalty on the trace, if the early peak is far above that of a good run.",
)
FISHER_TRACE: Mapping[str, Reading] = {
    "trace": _TRACE,
    "empirical_trace": Reading(
        seen="The empirical trace is the mean squared gradient norm of the true labels' log-likelihood.",
        usual="It falls towards zero as the network fits its labels, but the trace of the Fisher information does not "
        "(Kunstner et al. 2019).",
        check="Check that you want this quantity: it does not estimate the trace of the Fisher information.",
        attempt='Try labels="sampled" for the Fisher information.',
    ),
    "layer/*": Reading(
        seen="This is the part of the trace that belongs to the parameters of one layer; the parts add up to it.",
        usual="Parts differ by orders of magnitude between layers, because they grow with the inputs of a layer and "
        "with the gradients that reach it.",
        check="Compare a layer with itself over steps rather than with another layer.",
        attempt="Try a smaller learning rate or normalisation for a layer whose part alone explodes.",
    ),
    "flag/explosion": Reading(
        seen="The trace is larger than the first one times explosion_factor.",
        usual="Growth alone is usual: on MNIST-1D it was 21-fold in a healthy run, and 109-fold in one with a "
        "learning rate that was ten times too small.",
        check="Compare the trace over the loss with that of a run that generalises well.",
        attempt="Try a larger learning rate from the start, which keeps the early peak low.",
    ),
}
TRAINING_REGIME: Mapping[str, Reading] = {
    "regime": Reading(
        seen="The number names the regime: 0 lazy, 1 catapult, 2 edge of stability, 3 divergent, -1 none of these.",
        usual="Full-batch training with a moderate learning rate reaches the edge (Cohen et al. 2021); with small "
        "batches the ratio stays below 1, so lazy and unsettled are usual.",
        check="Check the loss over the same steps, and whether a warm-up or Adam's first steps hide the start.",
        attempt="Try a larger learning rate if training is lazy and slow, and a smaller one if it diverges.",
    ),
    "peak_loss_ratio": Reading(
        seen="This is the largest loss so far over the first one.",
        usual="It is 1 without a rise, and 2 to 30 in a catapult on a small network (Lewkowycz et al. 2020).",
        check="Check that the schedule measures the first ten steps, where a peak lies.",
        attempt="Try a smaller learning rate or a warm-up if the loss does not come back.",
    ),
    "lambda_ratio": Reading(
        seen="This is the largest curvature over that of the first measurement.",
        usual="It rises in full-batch training below the edge (Cohen et al. 2021) and falls in a catapult.",
        check="Check lambda_max_residual.",
        attempt="Try a larger learning rate for a flatter place.",
    ),
    "stability_ratio": Reading(
        seen="The ratio divides the curvature by the largest one at which the optimizer is stable; 1 is the edge.",
        usual="Full-batch training stays near 1; with small batches the ratio stays below 1.",
        check="Check the loss over the same steps: above 1 it may rise for some steps and still fall over many.",
        attempt="Try a lower learning rate or a warm-up if the loss does not fall.",
    ),
    "flag/catapult": Reading(
        seen="The loss rose early above its first value, and training has landed in a flatter place.",
        usual="Usual for full-batch training on the squared loss with a learning rate above 2 over the first curvature "
        "(Lewkowycz et al. 2020).",
        check="Check that the loss keeps falling now.",
        attempt="Change nothing; a smaller learning rate would avoid the peak and may end in a sharper place.",
    ),
    "flag/divergent": Reading(
        seen="The loss is not finite, or has been over ten times the first one over a doubling of steps.",
        usual="Not usual: a catapult that lands has fallen again within about thirty steps.",
        check="Check the stability ratio of the first measurements.",
        attempt="Try a learning rate below twice the inverse of the first curvature, or a warm-up.",
    ),
}
SHARPNESS: Mapping[str, Reading] = {
    "lambda_max": Reading(
        seen="The largest eigenvalue of the Hessian is the curvature of the loss along its sharpest direction.",
        usual="In full-batch training it rises until it stays near 2 over the learning rate (Cohen et al. 2021); with "
        "cross-entropy it falls again when the samples are fitted.",
        check="Check lambda_max_residual, and the scale of the weights: rescaling them changes the value without "
        "changing the function.",
        attempt="Try a larger learning rate for a lower value, which is not a generalisation score "
        "(Andriushchenko et al. 2023).",
    ),
    "stability_ratio": Reading(
        seen="The ratio divides the curvature by the largest one at which the optimizer is stable; 1 is the edge.",
        usual="Full-batch training stays near 1 (Cohen et al. 2021 for gradient descent, 2022 for Adam); with small "
        "batches the ratio stays below 1, for example 0.5 to 0.7 with batches of 32 on MNIST-1D.",
        check="Check the loss over the same steps: above 1 it may rise for some steps and still fall over many.",
        attempt="Try a lower learning rate or a warm-up if the loss does not fall, and a larger learning rate if the "
        "ratio is far below 1.",
    ),
    "sam": Reading(
        seen="This is the rise of the loss after one step of length rho along the gradient of all probe samples.",
        usual="It depends on the learning rate and the scale of the weights, and often does not order networks by "
        "their test error (Andriushchenko et al. 2023).",
        check="Check that runs have the same rho and the same samples, because sharpness over smaller groups of "
        "samples is larger.",
        attempt="Try training with sharpness-aware minimisation (Foret et al. 2021) if generalisation is poor.",
    ),
    "trace": Reading(
        seen="The trace of the Hessian is the sum of its eigenvalues: the curvature of the loss over all directions.",
        usual="For ReLU networks with cross-entropy it equals the trace of the Fisher information, but not with tanh, "
        "GELU, attention or LayerNorm.",
        check="Check its standard error, which is over the random vectors and not over samples.",
        attempt="Try per_layer=True to see which layer it comes from.",
    ),
    "lambda_max/layer/*": Reading(
        seen="This is the largest eigenvalue of the Hessian in the parameters of one layer, with the others fixed.",
        usual="It is never above lambda_max, and a few layers usually come close to it.",
        check="Check that the flag not_converged is 0.",
        attempt="Try a smaller learning rate or normalisation for a layer whose eigenvalue is close to lambda_max.",
    ),
    "trace/layer/*": Reading(
        seen="This is the part of the trace of the Hessian that belongs to the parameters of one layer.",
        usual="A part may be negative if the loss is not convex in that layer.",
        check="Check its standard error, which relative to the value is larger than that of the whole trace.",
        attempt="Try adding up the parts of several layers: all parts add up to the trace.",
    ),
    "flag/edge_of_stability": Reading(
        seen="The curvature has reached the stability threshold of the optimizer.",
        usual="Training tends to reach it by itself (Cohen et al. 2021), and usually continues well.",
        check="Check that the loss falls over many steps.",
        attempt="Change something only if the loss keeps rising.",
    ),
    "flag/unstable": Reading(
        seen="The curvature was far above the optimizer's stability threshold at two measurements in a row, and the "
        "loss has not fallen since.",
        usual="It is not usual: on MNIST-1D a learning rate of 4 instead of 0.3 raised it at step 6, and the network "
        "was dead at the end.",
        check="Check the training loss: if it falls again soon, the run has recovered and may be fine.",
        attempt="Try dividing the learning rate by the stability ratio, or a longer warm-up.",
    ),
    "flag/sharp": Reading(
        seen="The largest eigenvalue of the Hessian is above sharp_threshold.",
        usual="No universal value exists, because curvature scales with the weights and falls with the learning rate.",
        check="Check the stability ratio, which takes the learning rate into account.",
        attempt="Try a larger learning rate, or sharpness-aware minimisation.",
    ),
}
