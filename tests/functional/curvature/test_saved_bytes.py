from __future__ import annotations

import pytest
import torch

from lightning_probes.functional.curvature.saved_bytes import ModifiedError, counting_saved_bytes


def test_bytes_are_those_that_autograd_saves_each_storage_once() -> None:
    x = torch.zeros(100, requires_grad=True)
    with counting_saved_bytes() as saved:
        kept = x.exp()  # saves its result
        kept.square()  # saves the same tensor again
    assert sum(saved.values()) == 400


def test_a_graph_whose_tensors_were_written_to_has_no_backward_pass() -> None:
    x = torch.zeros(3, requires_grad=True)
    with counting_saved_bytes():
        kept = x.exp()
    kept.detach().zero_()
    with pytest.raises(ModifiedError):
        kept.sum().backward()
