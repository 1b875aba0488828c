"""Inner products against sums in double precision."""

from __future__ import annotations

import pytest
import torch

from lightning_probes.functional.inner_product import inner_product, norm


def test_length_of_ten_million_numbers_does_not_lose_the_small_ones() -> None:
    # Few are large and most are small, as in an eigenvector, and the small ones come when the sum is large already.
    vector = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0)).pow_(3).abs_().sort(descending=True)[0]
    exact = vector.double().square().sum().sqrt()

    assert norm(vector).item() == pytest.approx(exact.item(), rel=2e-6)


SIZES = pytest.mark.parametrize("size", [0, 1, 4_095, 4_096, 4_097, 200_000])


@SIZES
def test_inner_product_equals_that_in_double_precision(size: int) -> None:
    a, b = torch.rand(2, size, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(inner_product(a, b), a.double() @ b.double(), rtol=1e-6, atol=0)


@SIZES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_lengths_of_rows_equal_those_in_double_precision(size: int, dtype: torch.dtype) -> None:
    rows = torch.randn(2, 3, size, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    rows = rows.conj() if dtype.is_complex else rows.real.to(dtype)

    relative = 4 * torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 1e-6
    torch.testing.assert_close(norm(rows), rows.abs().double().square().sum(-1).sqrt(), rtol=relative, atol=0)


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_length_of_a_single_number_is_its_size(value: float) -> None:
    assert norm(torch.tensor([-value])).item() == pytest.approx(value, rel=1e-6)
