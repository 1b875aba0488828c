"""How to read the results of the callbacks in this family."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_probes.reporting.readings import Reading

INIT_INTERPOLATION: Mapping[str, Reading] = {
    "max_rise": Reading(
        seen="This is the largest rise of the loss on the line from the initialisation to the current weights.",
        usual="It is 0 for most networks trained by SGD; Adam, BatchNorm and large learning rates make a rise more "
        "likely (Lucas et al. 2021).",
        check="Check its standard error, and the loss at the end of the line: after a collapse to chance level the "
        "line is flat too.",
        attempt="Try a lower learning rate if training is slow as well. A rise alone does not show bad optimisation "
        "(Vlaar and Frankle 2022).",
    ),
    "monotonic": Reading(
        seen="It is 1 if the loss never rises on the line by more than tolerance and sampling error, otherwise 0.",
        usual="It is 1 for most networks trained by SGD, in image classification and elsewhere (Goodfellow et al. "
        "2015; Lucas et al. 2021).",
        check="Check the size of the rise, max_rise, before you interpret a 0.",
        attempt="Try layers= to see which part of the network causes the rise.",
    ),
}
