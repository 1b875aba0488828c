"""Paths and planes beside SciPy, scikit-learn and NumPy, which know nothing of networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BPoly, interp1d
from scipy.sparse.linalg import svds
from sklearn.decomposition import PCA
from torch import Tensor

from lightning_probes.functional.paths.barrier import barrier, barrier_mean, rise_above_ends
from lightning_probes.functional.paths.bezier import bezier
from lightning_probes.functional.paths.curvature_of_plane import nonconvexity
from lightning_probes.functional.paths.directions import random_direction
from lightning_probes.functional.paths.interpolation import lerp_params
from lightning_probes.functional.paths.plane import Plane, plane_through
from lightning_probes.functional.paths.polyline import arc_lengths, place_on
from lightning_probes.functional.paths.trajectory import combined, components, differences_gram


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_a_bent_path_is_the_bernstein_polynomial_of_scipy(t: float) -> None:
    start, theta, end = drawn(3, 9)
    curve = BPoly(torch.stack([start, theta, end])[:, None].numpy(), [0, 1])
    np.testing.assert_allclose(bezier(start, theta, end, t).numpy(), curve(t), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_place_on_a_chain_is_that_of_scipys_interpolation_over_arc_length(share: float) -> None:
    points = drawn(6, 4)
    lengths = np.r_[0, np.linalg.norm(np.diff(points.numpy(), axis=0), axis=1).cumsum()]
    chain = interp1d(lengths / lengths[-1], points.numpy(), axis=0)
    np.testing.assert_allclose(place_on([*points], share).numpy(), chain(share), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_point_of_a_line_is_that_of_scipys_interpolation(alpha: float) -> None:
    ends = drawn(2, 3, 5)
    line = interp1d([0, 1], ends.numpy(), axis=0)
    found = lerp_params({"w": ends[0]}, {"w": ends[1]}, alpha)["w"]
    np.testing.assert_allclose(found.numpy(), line(alpha), rtol=1e-13, atol=1e-15)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
@settings(deadline=None)
def test_barriers_are_heights_over_numpys_chord_mean_and_worse_end(curve: list[float]) -> None:
    positions, losses = np.linspace(0, 1, len(curve)), np.array(curve)
    chord = np.interp(positions, [0, 1], losses[[0, -1]])
    assert barrier(curve, positions.tolist()).value == pytest.approx((losses - chord).max(), abs=1e-11)
    assert barrier_mean(curve).value == pytest.approx((losses - losses[[0, -1]].mean()).max(), abs=1e-11)
    assert rise_above_ends(curve).value == pytest.approx((losses - losses[[0, -1]].max()).max(), abs=1e-11)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_trajectory_has_the_principal_components_of_scipys_sparse_solver(scale: float) -> None:
    rows = (scale * drawn(12, 300)).cumsum(0)
    *points, origin = [{"w": row} for row in rows]
    found = components(differences_gram(points, origin))
    moved = (rows[:-1] - rows[-1]).numpy()
    _, lengths, axes = svds(moved, k=2)
    shares = lengths[::-1] ** 2 / (moved**2).sum()
    np.testing.assert_allclose(found.explained[:2].numpy(), shares, rtol=1e-9)
    for direction, axis in zip(combined(points, origin, found.weights), axes[::-1], strict=True):
        assert abs(float(direction["w"].numpy() @ axis)) == pytest.approx(1, abs=1e-9)


def test_about_their_mean_the_components_are_those_of_scikit_learns_pca() -> None:
    rows = drawn(12, 300).cumsum(0)
    found = components(differences_gram([{"w": row} for row in rows], {"w": rows.mean(0)}))
    pca = PCA(2).fit(rows.numpy())
    np.testing.assert_allclose(found.explained[:2].numpy(), pca.explained_variance_ratio_, rtol=1e-9)
    turned = np.sign((pca.transform(rows.numpy()) * found.coordinates.numpy()).sum(0))
    np.testing.assert_allclose(found.coordinates.numpy() * turned, pca.transform(rows.numpy()), atol=1e-9)


def test_a_plane_through_three_points_is_spanned_as_by_numpys_qr_decomposition() -> None:
    first, second, third = points = drawn(3, 40)
    plane, coordinates = plane_through(*({"w": point} for point in points))
    axes, lengths = np.linalg.qr(torch.stack([second - first, third - first], 1).numpy())
    signs = np.sign(np.diagonal(lengths))
    np.testing.assert_allclose(coordinates[1:].numpy(), (signs[:, None] * lengths).T, atol=1e-12)
    x, y = 0.7, -0.4
    expected = first.numpy() + (axes * signs) @ [x, y]
    np.testing.assert_allclose(plane.at(x, y)["w"].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 3), (6, 2, 3, 3)])
def test_a_filter_normalised_plane_is_that_of_an_explicit_loop(shape: tuple[int, ...]) -> None:
    weight = drawn(*shape, seed=1)
    directions = [random_direction({"w": weight}, torch.Generator().manual_seed(seed)) for seed in (2, 3)]
    raw = [torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3)]
    found = Plane({"w": weight}, *directions).at(0.5, -2.0)["w"].numpy()
    for row, one, other, moved in zip(weight.numpy(), raw[0].numpy(), raw[1].numpy(), found, strict=True):
        length = np.linalg.norm(row.ravel())
        steps = [length * each / np.linalg.norm(each.ravel()) for each in (one, other)]
        np.testing.assert_allclose(moved, row + 0.5 * steps[0] - 2.0 * steps[1], rtol=1e-12, atol=1e-14)


def test_nonconvexity_is_that_of_eigenvalues_of_numpys_differences() -> None:
    step = 0.1
    x, y = np.meshgrid(np.arange(9) * step, np.arange(7) * step)
    surface = np.sin(3 * x) * np.cos(2 * y) + x * y**2 + 0.3 * x**2
    shares = []
    for i in range(1, 6):
        for j in range(1, 8):
            along_x = np.diff(surface[i, j - 1 : j + 2], 2)[0] / step**2
            along_y = np.diff(surface[i - 1 : i + 2, j], 2)[0] / step**2
            corners = surface[i - 1 : i + 2 : 2, j - 1 : j + 2 : 2]
            mixed = np.diff(np.diff(corners, axis=0), axis=1)[0, 0] / (4 * step**2)
            low, high = np.linalg.eigvalsh([[along_x, mixed], [mixed, along_y]])
            shares.append(max(0, -low) / max(abs(low), abs(high)))
    assert nonconvexity(torch.from_numpy(surface), step, step) == pytest.approx(np.mean(shares), rel=1e-9)


def test_arc_lengths_are_numpys() -> None:
    points = drawn(5, 30)
    steps = np.linalg.norm(np.diff(points.numpy(), axis=0), axis=1)
    np.testing.assert_allclose(arc_lengths([*points]), np.r_[0, steps.cumsum()], rtol=1e-12)
