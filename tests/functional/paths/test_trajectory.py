from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_probes.functional.paths import trajectory
from lightning_probes.functional.paths.trajectory import (
    combined,
    components,
    differences_gram,
    explained_by_random_walk,
)


def as_points(rows: Tensor) -> list[dict[str, Tensor]]:
    return [{"a": row[:6].view(2, 3), "b": row[6:]} for row in rows]


def walk(steps: int, size: int, lengths: Tensor | None = None, seed: int = 0) -> Tensor:
    """Points of a random walk, with its end last."""
    moves = torch.randn(steps, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moves *= (torch.ones(steps) if lengths is None else lengths).double()[:, None] / moves.norm(dim=1, keepdim=True)
    return torch.cat([torch.zeros(1, size, dtype=torch.float64), moves.cumsum(0)])


def test_components_equal_those_of_an_explicit_singular_value_decomposition() -> None:
    rows = torch.randn(7, 40, dtype=torch.float64)
    *points, origin = as_points(rows)
    gram = differences_gram(points, origin)
    found = components(gram)
    moved = rows[:-1] - rows[-1]
    assert torch.allclose(gram, moved @ moved.T)
    _, lengths, axes = torch.linalg.svd(moved, full_matrices=False)
    assert torch.allclose(found.explained, lengths**2 / (lengths**2).sum())
    for k, direction in enumerate(combined(points, origin, found.weights)):
        flat = torch.cat([direction["a"].flatten(), direction["b"]])
        assert abs(float(flat @ axes[k])) == pytest.approx(1.0, abs=1e-10)
        assert torch.allclose(moved @ flat, found.coordinates[:, k])
        assert float(found.coordinates[found.coordinates[:, k].abs().argmax(), k]) > 0


def test_pieces_of_a_tensor_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    *points, origin = as_points(torch.randn(4, 40, dtype=torch.float64))
    whole = differences_gram(points, origin)
    monkeypatch.setattr(trajectory, "_PIECE", 4)
    assert torch.allclose(differences_gram(points, origin), whole)


def test_a_million_parameters_need_no_matrix_of_their_size() -> None:
    rows = torch.randn(4, 1_000_000)
    points = [{"w": row} for row in rows[:-1]]
    assert components(differences_gram(points, {"w": rows[-1]})).explained.sum() == pytest.approx(1.0)


def test_a_trajectory_in_a_plane_is_explained_entirely() -> None:
    axes = torch.linalg.qr(torch.randn(50, 2, dtype=torch.float64)).Q
    angle = torch.linspace(0, 3, 9, dtype=torch.float64)
    *points, origin = as_points(torch.stack([angle.cos(), 2 * angle.sin()], 1) @ axes.T)
    found = components(differences_gram(points, origin))
    assert found.explained[:2].sum() == pytest.approx(1.0)
    assert found.explained[1] > 0.01


@pytest.mark.parametrize("lengths", [None, torch.linspace(3.0, 0.2, 12)])
def test_a_random_walk_is_explained_as_its_closed_form_says(lengths: Tensor | None) -> None:
    *points, origin = as_points(walk(12, 200_000, lengths))
    gram = differences_gram(points, origin)
    drawn, closed = components(gram).explained, explained_by_random_walk(gram)
    assert torch.allclose(drawn, closed, atol=5e-3)


def test_a_long_random_walk_of_equal_steps_is_explained_to_eight_over_pi_squared() -> None:
    order = torch.arange(400, 0, -1, dtype=torch.float64)
    shares = explained_by_random_walk(torch.minimum(order[:, None], order[None]))
    assert shares[0] == pytest.approx(8 / math.pi**2, rel=5e-3)
    assert shares[1] == pytest.approx(8 / (9 * math.pi**2), rel=5e-3)


def test_points_on_one_line_have_no_second_component() -> None:
    start, end = torch.randn(40), torch.randn(40)
    *points, origin = as_points(torch.stack([torch.lerp(start, end, t) for t in (0.0, 0.25, 0.5, 1.0)]).double())
    with pytest.raises(ValueError, match="one line"):
        components(differences_gram(points, origin))
    with pytest.raises(ValueError, match="one line"):
        components(differences_gram(points[:1], origin))


def test_a_point_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'w' is missing, or of another shape"):
        differences_gram([{"w": torch.zeros(3)}], {"w": torch.zeros(2)})
