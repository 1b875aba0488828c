"""How to read the results of the callbacks in this family."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_probes.reporting.readings import Reading

FISHER_PENALTY: Mapping[str, Reading] = {
    "value": Reading(
        seen="This is the trace of the Fisher information, estimated from one training batch with sampled labels.",
        usual="On MNIST-1D with a small learning rate it rose from about 100 to 700 without a penalty, and to 170 with "
        "a coefficient of 0.0015.",
        check="Check FisherTrace beside it, because an estimate from one batch varies by a large factor.",
        attempt="Try a larger coefficient if it still explodes, and a smaller one if the loss does not fall.",
    ),
    "share": Reading(
        seen="This is the norm of the gradient that the penalty adds, over the norm of the loss's own gradient.",
        usual="It rises with the trace, and usually stays below 1 for a coefficient that lets training go on.",
        check="Check the training loss: a penalty that outweighs it keeps the network at its initialisation.",
        attempt="Try a third of the coefficient if the share is far above 1 for many steps.",
    ),
}
