"""Inner products against sums in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_probes.functional.inner_product import inner_product, norm


def promised(size: int, dtype: torch.dtype = torch.float32) -> float:
    """Relative error of a sum of terms of one sign that is summed in pieces.

    A running sum of m terms is rounded m times, by up to eps / 2 of what it is then. Of either sign and at random that
    has a standard deviation of sqrt(m) eps / 6, and the most unlucky order of summing has no more. This is six of them.
    """
    piece = max(min(size, 4_096), size / 1_024, 1)
    return math.sqrt(piece) * torch.finfo(dtype).eps


def test_length_of_ten_million_numbers_does_not_lose_the_small_ones() -> None:
    # Few are large and most are small, as in an eigenvector, and the small ones come when the sum is large already.
    vector = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0)).pow_(3).abs_().sort(descending=True)[0]
    exact = vector.double().square().sum().sqrt()

    assert norm(vector).item() == pytest.approx(exact.item(), rel=promised(10_000_000) / 2)


SIZES = pytest.mark.parametrize("size", [0, 1, 4_095, 4_096, 4_097, 200_000])


@SIZES
def test_inner_product_equals_that_in_double_precision(size: int) -> None:
    a, b = torch.rand(2, size, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(inner_product(a, b), a.double() @ b.double(), rtol=promised(size), atol=0)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_lengths_of_rows_equal_those_in_double_precision(size: int, dtype: torch.dtype) -> None:
    rows = torch.randn(2, 3, size, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    rows = rows.conj() if dtype.is_complex else rows.real.to(dtype)

    # The root halves a relative error; what is left is the rounding of each length, and for half precision no more, as
    # it is summed in float32.
    eps = torch.finfo(dtype).eps
    relative = 4 * eps if dtype in (torch.float16, torch.bfloat16) else promised(size, dtype) / 2 + 2 * eps
    torch.testing.assert_close(norm(rows), rows.abs().double().square().sum(-1).sqrt(), rtol=relative, atol=0)


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_length_of_a_single_number_is_its_size(value: float) -> None:
    assert norm(torch.tensor([-value])).item() == pytest.approx(value, rel=1e-6)
