"""Recurrent layers on a GPU. Without cuDNN their steps are fused operations, which are computed here on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from .exchanging import change, groups_found
from .networks import GRU, LSTM, randomised, samples

FUSED = torch.ops.aten


def lstm_cell(
    x: Tensor, h: Tensor, cx: Tensor, x_bias: Tensor | None = None, h_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    gates = x + h + (0 if x_bias is None or h_bias is None else x_bias + h_bias)
    i, f, g, o = gates.chunk(4, 1)
    cy = f.sigmoid() * cx + i.sigmoid() * g.tanh()
    return o.sigmoid() * cy.tanh(), cy, gates.clone()


def gru_cell(
    x: Tensor, h: Tensor, hx: Tensor, x_bias: Tensor | None = None, h_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if x_bias is not None and h_bias is not None:
        x, h = x + x_bias, h + h_bias
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), h.chunk(3, 1)
    z, new = (xz + hz).sigmoid(), (xn + (xr + hr).sigmoid() * hn).tanh()
    return new + z * (hx - new), x.new_zeros(len(x), 5 * hx.shape[1])


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_thnn_fused_lstm_cell", lstm_cell, "CPU")
        library.impl("_thnn_fused_gru_cell", gru_cell, "CPU")
        yield


class FusedLSTM(LSTM):
    def forward(self, x: Tensor) -> Tensor:
        one, steps = self.lstm, x[:, 0].unbind(1)
        h = c = x.new_zeros(len(x), 12)
        for step in steps:
            gates = step @ one.weight_ih_l0.T, h @ one.weight_hh_l0.T
            h, c, _ = FUSED._thnn_fused_lstm_cell(*gates, c, one.bias_ih_l0, one.bias_hh_l0)
        return self.head(h)


class FusedGRU(GRU):
    def forward(self, x: Tensor) -> Tensor:
        rows, one = x[:, 0], self.gru
        for layer in range(2):
            w_ih, w_hh, b_ih, b_hh = one.all_weights[layer]
            h, outputs = x.new_zeros(len(x), 12), []
            for step in rows.unbind(1):
                h, _ = FUSED._thnn_fused_gru_cell(step @ w_ih.T, h @ w_hh.T, h, b_ih, b_hh)
                outputs.append(h)
            rows = torch.stack(outputs, 1)
        return self.head(rows[:, -1])


@pytest.mark.parametrize(("fused", "plain"), [(FusedLSTM, LSTM), (FusedGRU, GRU)])
def test_units_of_fused_steps_are_those_of_separate_operations(fused: type[nn.Module], plain: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = randomised(fused())
    other = plain()
    other.load_state_dict(module.state_dict())
    x = samples("")
    torch.testing.assert_close(module(x), other.eval()(x))
    found, expected = groups_found(module, x), groups_found(other, x)
    assert (found.unknown, found.dropped) == ((), ())
    assert [group.name for group in found.groups] == [group.name for group in expected.groups]
    for one, two in zip(found.groups, expected.groups, strict=True):
        assert one.slices.keys() == two.slices.keys()
        assert all(torch.equal(one.slices[key], two.slices[key]) for key in one.slices)
        assert (one.producers, one.readers) == (two.producers, two.readers)
    assert change(module, found, x) < 1e-5
