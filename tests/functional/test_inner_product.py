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


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_inner_product_of_rows_equals_that_in_double_precision(size: int) -> None:
    a, b = torch.rand(2, 3, size, generator=torch.Generator().manual_seed(0))

    found = inner_product(a, b)

    torch.testing.assert_close(found, (a.double() * b.double()).sum(-1), rtol=1e-6, atol=0)


def test_length_of_a_complex_vector_is_that_of_its_parts() -> None:
    assert norm(torch.tensor([[3 + 4j, 0], [0, 1j]])).tolist() == [5.0, 1.0]
