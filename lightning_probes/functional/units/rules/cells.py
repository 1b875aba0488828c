"""Steps of recurrent layers that a GPU computes in one operation, once cuDNN is off."""

from __future__ import annotations

from lightning_probes.functional.units.labels import Labels
from lightning_probes.functional.units.rules.call import Call, Rule
from lightning_probes.functional.units.rules.meetings import meet


def fused_cell(gates: int, state: str) -> Rule:
    """Gates that lie one after the other along the last axis, each with an entry for every unit of the state.

    Args:
        gates: How many.
        state: Name of the argument with the state before the step.
    """

    def rule(call: Call) -> list[Labels]:
        evidence, before = call.evidence, call.tensor(state)
        biases = [labels for name in ("input_bias", "hidden_bias") if (labels := call.labels(name)) is not None]
        summed = call.tensor("input_gates"), call.tensor("hidden_gates"), *biases
        packed = meet(evidence, summed, summed[0].shape)
        every = [list(packed.without(-1)) for _ in range(gates)]
        for factor in packed.along(-1):
            for gate, part in zip(every, factor.chunk(gates, -1), strict=True):
                evidence.set_apart(part)
                gate.append(part)
        parts = [Labels(before.shape, tuple(factors), packed.uniform) for factors in every]
        after = meet(evidence, [*parts, before], before.shape)
        # The last output is for a backward pass alone.
        return [after] * (len(call.outputs) - 1)

    return rule


RULES: dict[str, Rule] = {
    "_thnn_fused_lstm_cell": fused_cell(4, "cx"),
    "_thnn_fused_gru_cell": fused_cell(3, "hx"),
}
