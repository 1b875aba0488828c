from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_probes.functional.parameter_vector import to_dict, to_vector

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5)
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@given(SHAPES, st.lists(DTYPES, min_size=5, max_size=5))
def test_round_trip_is_exact_for_any_shapes_and_dtypes(shapes: list[list[int]], dtypes: list[torch.dtype]) -> None:
    torch.manual_seed(0)
    params = {
        f"p{i}": torch.randn(shape).to(dtype) for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    }
    back = to_dict(to_vector(params), like=params)
    assert list(back) == list(params)
    for name, tensor in params.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_layout_is_that_of_torch_parameters_to_vector() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(3, 2))
    expected = nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(to_vector(dict(model.named_parameters())), expected)


def test_non_contiguous_parameters_are_laid_out_row_by_row() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    params = {"transposed": matrix.T}
    assert to_vector(params).tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(to_dict(to_vector(params), like=params)["transposed"], matrix.T)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.bfloat16], torch.float32),
        ([torch.float16], torch.float32),
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
    ],
)
def test_vector_is_float32_or_wider(dtypes: list[torch.dtype], expected: torch.dtype) -> None:
    params = {str(i): torch.ones(1, dtype=dtype) for i, dtype in enumerate(dtypes)}
    assert to_vector(params).dtype == expected


def test_vector_does_not_share_memory_with_a_single_parameter() -> None:
    weight = torch.zeros(2)
    to_vector({"w": weight}).add_(1)
    assert weight.tolist() == [0, 0]


def test_integer_parameter_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"'steps' has dtype torch.int64"):
        to_vector({"w": torch.ones(1), "steps": torch.ones(1, dtype=torch.int64)})


def test_empty_params_are_an_error() -> None:
    with pytest.raises(ValueError, match="params is empty"):
        to_vector({})


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1)])
def test_vector_of_another_size_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="hold 3 elements"):
        to_dict(torch.zeros(shape), like={"w": torch.ones(3)})
