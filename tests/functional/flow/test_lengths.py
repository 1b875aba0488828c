"""Lengths and zeros of many tensors are those of each tensor by itself, whatever kind of tensor it is."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_probes.functional.flow.lengths import lengths, zeros


def drawn(kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 5, generator=generator) * (torch.rand(3, 5, generator=generator) > 0.3)
    return {
        "single": values,
        "double": values.double(),
        "half": values.bfloat16(),
        "complex": torch.complex(values, values.flip(0)),
        "conjugate": torch.complex(values, values.flip(0)).conj(),
        "sparse": values.to_sparse(),
        "rows": values.to_sparse_csr(),
        "transposed": values.t(),
        "empty": values[:0],
        "scalar": values[0, 0],
    }[kind]


KINDS = ["single", "double", "half", "complex", "conjugate", "sparse", "rows", "transposed", "empty", "scalar"]


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), max_size=8))
@settings(deadline=None)
def test_each_has_its_own_norm_and_its_own_zeros(chosen: list[tuple[str, int]]) -> None:
    tensors = [drawn(*each) for each in chosen]
    dense = [tensor.to_dense().resolve_conj() for tensor in tensors]
    expected = [float(each.abs().double().square().sum().sqrt()) for each in dense]
    assert torch.allclose(lengths(tensors).double(), torch.tensor(expected).double(), rtol=1e-5)
    assert zeros(tensors).tolist() == [int((each == 0).sum()) for each in dense]


def test_entries_of_a_sparse_gradient_that_share_a_place_add_up() -> None:
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([[3.0, 0.0], [0.0, 4.0]]), (4, 2))
    assert lengths([twice]).tolist() == [5.0]
    assert zeros([twice]).tolist() == [6]


def test_squares_of_half_precision_do_not_overflow() -> None:
    assert lengths([torch.full((4,), 6e4, dtype=torch.float16)]).tolist() == [1.2e5]
