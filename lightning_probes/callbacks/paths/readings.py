"""How to read the results of the callbacks in this family."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_probes.reporting.readings import Reading

INIT_INTERPOLATION: Mapping[str, Reading] = {
    "linearized_error": Reading(
        seen="This is the distance of the linearised network's logits from the real ones, over how far these have "
        "moved.",
        usual="Near 0 for very wide networks and short fine-tuning, and far from 0 after training from scratch at "
        "usual widths.",
        check="Check that the logits have moved at all, and that BatchNorm's statistics fit both ends.",
        attempt="Try a linear method, such as a Laplace approximation or a linear probe, if it is near 0.",
    ),
    "linearized_accuracy": Reading(
        seen="This is the accuracy of the first-order expansion about the initialisation, at the current weights.",
        usual="Close to the network's own accuracy if linearized_error is small.",
        check="Compare it with the accuracy at the end of the line.",
        attempt="Try longer training or a larger learning rate if lazy training does not reach what you need.",
    ),
    "max_rise": Reading(
        seen="This is the largest rise of the loss on the line from the initialisation to the current weights.",
        usual="It is 0 for most networks trained by SGD; Adam, BatchNorm and large learning rates make a rise more "
        "likely (Lucas et al. 2021).",
        check="Check its standard error, and the loss at the end of the line: after a collapse to chance level the "
        "line is flat too.",
        attempt="Try a lower learning rate if training is slow as well, because a rise alone does not show bad "
        "optimisation (Vlaar and Frankle 2022).",
    ),
    "monotonic": Reading(
        seen="It is 1 if the loss never rises on the line by more than tolerance and sampling error, otherwise 0.",
        usual="It is 1 for most networks trained by SGD, in image classification and elsewhere (Goodfellow et al. "
        "2015; Lucas et al. 2021).",
        check="Check the size of the rise, max_rise, before you interpret a 0.",
        attempt="Try layers= to see which part of the network causes the rise.",
    ),
}

MODE_CONNECTIVITY: Mapping[str, Reading] = {
    "barrier": Reading(
        seen="This is the largest height of the loss over the chord, on the straight line to the other run.",
        usual="Two runs from different initialisations usually have a barrier, even where they are equally good "
        "(Frankle et al. 2020).",
        check="Check its standard error, and the loss at both ends: between ends of different loss barrier_mean and "
        "rise_above_ends say something else.",
        attempt="Try align= to see whether the barrier comes from the order of the units.",
    ),
    "barrier_mean": Reading(
        seen="This is the largest height of the loss over the mean of the two ends.",
        usual="It equals the barrier for equal ends; while this run is still far worse than the other it is half of "
        "the difference between them.",
        check="Check rise_above_ends: if that is 0 the loss only falls.",
        attempt="Try to compare two finished runs.",
    ),
    "rise_above_ends": Reading(
        seen="This is how far the loss on the line rises above the worse end.",
        usual="It is 0 early in training, when the loss falls all the way to a finished run.",
        check="Check the barrier over the chord as well, which does not wait until the worse end is passed.",
        attempt="Try a later step: from which one on it is above 0 says when this run enters another basin.",
    ),
    "error_*": Reading(
        seen="This is the same height for the share of wrong predictions.",
        usual="Runs with less than 2 % count as linearly connected (Frankle et al. 2020).",
        check="Check the curve: a barrier of the loss without one of the error means that predictions stay right and "
        "become less certain.",
        attempt="Try more samples if the standard error is as large as the barrier.",
    ),
    "repaired/*": Reading(
        seen="This is the barrier between matched runs with the outputs of units as spread as between the ends.",
        usual="It is lower still, mostly by a third to three quarters, in networks without BatchNorm (Jordan et al. "
        "2023).",
        check="Check aligned/barrier beside it.",
        attempt="Try wider layers if both are high.",
    ),
    "aligned/*": Reading(
        seen="This is the barrier once the other run's units are in the order in which they are most like this run's.",
        usual="It is a fraction of the barrier without matching, the smaller the wider the network; narrow ResNets "
        "keep a large one (Entezari et al. 2022; Ainsworth et al. 2023).",
        check="Check aligned/moved_units: if it is 0 no units could be matched, and the log says which.",
        attempt="Try the other way to match, and then path= for a way round what is left.",
    ),
    "path/max_loss": Reading(
        seen="This is the highest loss on the path to the other run that was found: an upper bound of the lowest.",
        usual="It is usually close to the loss of the ends, even where the straight line has a high barrier (Garipov "
        "et al. 2018; Draxler et al. 2018).",
        check="Check val/max_loss beside it, because the path fits the samples that it was found with.",
        attempt="Try more path_steps and more samples: the bound falls with both.",
    ),
    "flag/not_converged": Reading(
        seen="The second half of the steps has still lowered the loss on the path by more than 10 %.",
        usual="It is usual with the default number of steps; path/max_loss is an upper bound all the same.",
        check="Check whether path/max_loss is close to the loss of the ends already.",
        attempt="Try twice as many path_steps.",
    ),
    "*/max_rise": Reading(
        seen="This is the largest rise of the loss on the line from the initialisation of one run to the other run.",
        usual="It is about 0 even where the line between the two runs has a barrier (Lucas et al. 2021).",
        check="Check max_rise of InitInterpolation, the line from this run's own initialisation.",
        attempt="Try a lower learning rate if both lines rise.",
    ),
}

DROPOUT_STABILITY: Mapping[str, Reading] = {
    "rise": Reading(
        seen="This is the mean rise of the loss if a random half of the units of each layer is dropped.",
        usual="It falls fast with the width of the layers, and is large for narrow and small convolutional networks "
        "(Shevchenko and Mondelli 2020).",
        check="Check its standard error, which is over halves, and compare it with the loss of the whole network.",
        attempt="Try a wider network, or dropout in training, if half of the network should do.",
    ),
    "rise_best": Reading(
        seen="This is the rise of the loss for the best of the halves that were tried.",
        usual="It lies well below the mean in narrow networks, where some units matter and others do not.",
        check="Check how many halves were tried, because more of them find a better one.",
        attempt="Try more halves= to come closer to the best half.",
    ),
    "suffix_max": Reading(
        seen="This is the largest rise of the loss if only the layers from some layer on lose their other half.",
        usual="It is mostly the rise with the units of all layers dropped, or a little more.",
        check="Check which layers were left out, in the run's config under left_out.",
        attempt="Try per_layer=True to see which layer can spare its units least.",
    ),
    "bound": Reading(
        seen="A path leads from here to any network of this shape with no higher bound; its loss stays below this.",
        usual="It is close to the loss for wide networks and far above it for narrow ones (Kuditipudi et al. 2019).",
        check="Check it against the barrier of a straight line: for a narrow network the line may be lower.",
        attempt="Try more halves= for a lower bound.",
    ),
}

LOSS_PLANE: Mapping[str, Reading] = {
    "nonconvexity": Reading(
        seen="This is the negative curvature of the loss over the largest one in magnitude, mean over the plane.",
        usual="On small residual networks it is mostly below 0.02, and several times larger without skip connections "
        "(Li et al. 2018).",
        check="Check the surface, because at the rim of a plane with a large span the loss says little about training.",
        attempt="Try skip connections or normalisation layers if a deep network trains badly and it is large.",
    ),
    "flat_share": Reading(
        seen="This is the share of the plane on which the loss is less than 1 above that of the centre.",
        usual="It depends on span and on the unit of the loss, so that only runs of one loss and one span compare.",
        check="Check that the loss at the centre is that of a trained network: an untrained one is flat, too.",
        attempt="Try the same plane for another architecture, and compare the two.",
    ),
    "kink_gap": Reading(
        seen="This is the part of the gradient's change over a small step that the Hessian does not see.",
        usual="It is about 0.02 or less for smooth activations, and 0.1 and more for ReLUs.",
        check="Check it before you trust a curvature (Sharpness) of a network of ReLUs.",
        attempt="Try a smooth activation (GELU, SiLU, Mish) if curvature matters.",
    ),
    "explained_variance": Reading(
        seen="This is the share of the squared distances of the checkpoints that the plane explains.",
        usual="It is 0.9 and more for most runs, and nearly as much for a random walk.",
        check="Check explained_variance_random_walk beside it: only the difference says something about training.",
        attempt="Try more checkpoints early in training, where the path bends.",
    ),
    "explained_variance_random_walk": Reading(
        seen="This is what two components would explain of a random walk of the same step lengths.",
        usual="It is about 0.9: 0.81 and 0.09 for many equal steps (Antognini and Sohl-Dickstein 2018).",
        check="Check how far explained_variance is above it.",
        attempt="Try checkpoints at equal distances, for which the null is known in closed form.",
    ),
}
