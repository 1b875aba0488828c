from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_probes.functional.paths.plane import Plane, plane_through


def point(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(20, 30, generator=generator, dtype=dtype),
        "bias": torch.randn(20, generator=generator, dtype=dtype),
    }


def test_at_its_origin_a_plane_has_the_parameters_bit_for_bit_and_leaves_out_what_does_not_move() -> None:
    origin = {"weight": torch.tensor([-0.0, 1.0]), "bias": torch.ones(2)}
    plane = Plane(origin, {"weight": torch.ones(2)}, {"weight": -torch.ones(2)})
    found = plane.at(0.0, 0.0)
    assert list(found) == ["weight"]
    assert found["weight"].signbit().tolist() == [True, False]
    assert torch.equal(plane.at(2.0, 0.5)["weight"], torch.tensor([1.5, 2.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_of_three_points_is_found_again_at_its_coordinates(dtype: torch.dtype) -> None:
    points = [point(seed, dtype) for seed in range(3)]
    plane, coordinates = plane_through(*points)
    for each, (x, y) in zip(points, coordinates.tolist(), strict=True):
        found = plane.at(x, y)
        assert all(torch.allclose(found[name], each[name], atol=1e-5, rtol=0) for name in each)


def test_coordinates_on_a_plane_are_distances_in_parameter_space() -> None:
    points = [point(seed) for seed in range(3)]
    _, coordinates = plane_through(*points)
    flat = torch.stack([torch.cat([tensor.flatten() for tensor in each.values()]) for each in points]).double()
    assert torch.allclose(torch.cdist(coordinates, coordinates), torch.cdist(flat, flat), rtol=1e-6)
    assert coordinates[0].tolist() == [0, 0]
    assert coordinates[1, 1] == 0
    assert coordinates[2, 1] > 0


@pytest.mark.parametrize("shares", [(0.0, 1.0), (1.0, 1.0), (1.0, 0.0), (0.3, 1.0), (1.0, -2.0)])
def test_points_on_a_line_span_no_plane(shares: tuple[float, float]) -> None:
    start, end = point(0), point(1)
    first, second = ({name: torch.lerp(start[name], end[name], share) for name in start} for share in shares)
    with pytest.raises(ValueError, match="on one line"):
        plane_through(start, first, second)


def test_counters_and_masks_are_left_out_of_a_plane() -> None:
    points = [{**point(seed), "steps": torch.tensor(seed), "mask": torch.tensor([True])} for seed in range(3)]
    assert set(plane_through(*points)[0].at(1.0, 1.0)) == {"weight", "bias"}
