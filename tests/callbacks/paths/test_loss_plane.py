from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from lightning_probes import AtFitEnd, EveryNSteps, LossPlane, Surface
from tests.callbacks.models import Supervised, classification, loader, trainer

X, Y = classification()


def network(seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> Supervised:
    torch.manual_seed(seed)
    return Supervised(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), activation(), nn.Linear(8, 3)))


def fitted(module: Supervised, epochs: int = 3) -> Supervised:
    trainer(max_epochs=epochs).fit(module, loader(X, Y))
    return module


def states(count: int = 3) -> list[dict[str, Tensor]]:
    """States of one run, and a module in the last of them."""
    module, found = network(), []
    for _ in range(count):
        found.append(copy.deepcopy(fitted(module).state_dict()))
    return found


def loaded(state: dict[str, Tensor], re_estimate: bool = True) -> Supervised:
    module = network()
    module.load_state_dict(state)
    if re_estimate:
        module.net[1].reset_running_stats()
        module.net[1].momentum = None
        module.train()(X)
    return module.eval()


def surface(results: dict[str, Any], name: str = "plane") -> Surface:
    found = results[f"{name}/loss"]
    assert isinstance(found, Surface)
    return found


def whole(module: nn.Module, **arguments: Any) -> dict[str, Any]:
    return LossPlane(micro_batch_size=64, num_samples=64, **arguments).evaluate(module, loader(X, Y))


# -- random planes -----------------------------------------------------------------------------------------------------


def test_centre_of_a_random_plane_is_the_evaluated_loss() -> None:
    module = fitted(network())
    results = whole(module, resolution=5)
    expected = float(cross_entropy(module.eval()(X), Y))
    assert surface(results).values[2, 2] == pytest.approx(expected, abs=1e-7)
    assert results["plane/centre_loss"].value == surface(results).values[2, 2]
    recalibrated = whole(module, resolution=3, batch_norm="recalibrate")
    expected = float(cross_entropy(loaded(module.state_dict())(X), Y))
    assert surface(recalibrated).values[1, 1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("resolution", [4, 5])
def test_grid_reaches_from_minus_span_to_span(resolution: int) -> None:
    found = surface(whole(network(), resolution=resolution, span=0.5))
    assert found.x.tolist() == found.y.tolist() == pytest.approx(np.linspace(-0.5, 0.5, resolution).tolist())
    assert found.values.shape == (resolution, resolution)
    assert (0.0 in found.x) == (resolution == 5)
    assert found.path is not None
    assert found.path.tolist() == [[0, 0]]


class Rescaled(Supervised):
    """A network whose filters in front of BatchNorm have another length; BatchNorm makes it the same function."""

    def __init__(self, module: Supervised, factor: Tensor) -> None:
        super().__init__(copy.deepcopy(module.net))
        with torch.no_grad():
            self.net[0].weight.mul_(factor[:, None])
            self.net[0].bias.mul_(factor)


def test_plane_does_not_change_with_the_length_of_filters_before_batch_norm() -> None:
    module = fitted(network())
    factor = torch.linspace(0.5, 4.0, 8)
    with torch.no_grad():
        module.net[1].eps = 1e-12
    first, second = (
        surface(whole(each, resolution=5, batch_norm="recalibrate")).values
        for each in (module, Rescaled(module, factor))
    )
    assert np.abs(first - second).max() < 1e-5
    assert np.ptp(first) > 0.1


def bowl(signs: Tensor) -> tuple[Supervised, Any]:
    """A loss that is quadratic in a weight of two rows, about zero."""
    module = Supervised(nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        module.net.weight.copy_(torch.tensor([[1.0], [1.0]]))

    def loss(module: Any, batch: Any) -> Tensor:
        away = module.net.weight.flatten() - 1.0
        return (signs * away.square()).sum() + 5 + 0 * batch[0].sum()

    return module, loss


def test_a_quadratic_bowl_is_convex_and_a_saddle_bends_down_as_much_as_up() -> None:
    # A filter of one weight has two directions, so the seed decides whether two of them span a plane.
    seed = next(seed for seed in range(20) if np.ptp(surface(saddle_at(seed)).values) > 1)
    found = {}
    for name, signs in (("bowl", torch.tensor([1.0, 1.0])), ("saddle", torch.tensor([1.0, -1.0]))):
        module, loss = bowl(signs)
        probe = LossPlane(loss_fn=loss, resolution=7, seed=seed)
        found[name] = probe.evaluate(module, loader(torch.zeros(8, 1), torch.zeros(8)))["plane/nonconvexity"]
    assert found["bowl"].value == pytest.approx(0.0, abs=1e-4)
    assert found["saddle"].value == pytest.approx(1.0, abs=1e-4)


def saddle_at(seed: int) -> dict[str, Any]:
    module, loss = bowl(torch.tensor([1.0, -1.0]))
    return LossPlane(loss_fn=loss, resolution=3, seed=seed).evaluate(module, loader(torch.zeros(8, 1), torch.zeros(8)))


def test_plane_is_the_same_at_every_event_and_scales_with_the_weights() -> None:
    probe = LossPlane(resolution=3, schedule=EveryNSteps(4), loss_fn=lambda module, batch: module.net[0].weight.sum())
    module = network()
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    trainer(max_epochs=3, callbacks=[probe]).fit(module, loader(X, Y))
    first, *others = [result for _, result in probe.progress.log.record.trail["plane/loss"]]
    assert len(others) >= 2
    assert all(np.array_equal(first.values, other.values) for other in others)


def test_frozen_parameters_do_not_move_and_thawing_does_not_turn_the_plane() -> None:
    def moved_first_layer(frozen: bool) -> np.ndarray[Any, Any]:
        module = network()
        module.net[3].weight.requires_grad_(not frozen)
        probe = LossPlane(resolution=3, loss_fn=lambda module, batch: module.net[0].weight.square().sum())
        return surface(probe.evaluate(module, loader(X, Y))).values

    assert np.array_equal(moved_first_layer(True), moved_first_layer(False))
    probe = LossPlane(resolution=3, loss_fn=lambda module, batch: module.net[3].weight.square().sum())
    module = network()
    module.net[3].weight.requires_grad_(False)
    assert np.ptp(surface(probe.evaluate(module, loader(X, Y))).values) == 0


def test_kinks_of_relus_have_a_gap_and_a_smooth_activation_almost_none() -> None:
    x, y = classification(samples=64, inputs=8)
    found = {}
    for kind in (nn.ReLU, nn.Mish):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 32), kind(), nn.Linear(32, 32), kind(), nn.Linear(32, 3))
        results = LossPlane(resolution=3).evaluate(Supervised(net.double()), loader(x.double(), y))
        found[kind] = results["plane/kink_gap"].value
    assert found[nn.ReLU] > 10 * found[nn.Mish] > 0


def test_a_loss_without_second_derivatives_has_a_plane_and_no_kink_gap() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("no second derivative")
            return slope

    probe = LossPlane(resolution=3, loss_fn=lambda module, batch: cross_entropy(Once.apply(module(batch[0])), batch[1]))
    results = probe.evaluate(network(), loader(X, Y))
    assert "plane/kink_gap" not in results
    assert "plane/nonconvexity" in results
    assert any("there is no kink_gap" in text and "no second derivative" in text for text in probe.say.said)


def test_a_point_that_is_not_finite_is_a_gap_and_leaves_no_number_of_the_rest() -> None:
    def loss(module: Any, batch: Any) -> Tensor:
        weight = module.net.weight.sum()
        return torch.where(weight > 2.5, torch.inf, weight.square())

    module = Supervised(nn.Linear(1, 2, bias=False))
    nn.init.ones_(module.net.weight)
    found = {}
    for seed in range(6):
        found = LossPlane(loss_fn=loss, resolution=5, seed=seed).evaluate(module, loader(torch.zeros(8, 1)))
        if not np.isfinite(surface(found).values).all():
            break
    assert not np.isfinite(surface(found).values).all()
    assert np.isnan(found["plane/nonconvexity"].value)
    assert found["plane/flag/nonfinite"].raised


def test_a_model_without_filters_is_refused_with_the_argument_to_set() -> None:
    class Scale(Supervised):
        def __init__(self) -> None:
            super().__init__(nn.Identity(), mse_loss)
            self.factor = nn.Parameter(torch.ones(4))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.factor * batch[0]).square().mean()

    with pytest.raises(
        MisconfigurationException, match=r"no trainable parameter has filters .* directions='trajectory'"
    ):
        LossPlane().evaluate(Scale(), loader(X, Y))


# -- planes through saved states ---------------------------------------------------------------------------------------


def test_trajectory_starts_at_its_first_checkpoint_and_ends_at_the_current_weights() -> None:
    saved = states(4)
    module = loaded(saved[-1], re_estimate=False)
    results = whole(module, directions="trajectory", checkpoints=saved[:-1], resolution=5)
    found = surface(results)
    assert found.path is not None
    assert found.path[-1].tolist() == [0, 0]
    assert found.path_labels == ("checkpoint 1", "checkpoint 2", "checkpoint 3", "now")
    flat = [torch.cat([state[name].flatten() for name, _ in module.named_parameters()]) for state in saved]
    lengths = [float((each - flat[-1]).norm()) for each in flat]
    assert np.linalg.norm(found.path, axis=1) == pytest.approx(lengths, rel=0.2)
    assert (np.linalg.norm(found.path, axis=1) <= np.array(lengths) * (1 + 1e-6)).all()
    assert results["plane/centre_loss"].value == pytest.approx(float(cross_entropy(loaded(saved[-1])(X), Y)), abs=1e-6)
    assert 0.5 < results["plane/explained_variance"].value <= 1
    assert 0.5 < results["plane/explained_variance_random_walk"].value <= 1
    assert found.x.min() < found.path[:, 0].min() <= found.path[:, 0].max() < found.x.max()


def grid_through(module: nn.Module, saved: Any, **arguments: Any) -> Surface:
    return surface(whole(module, directions="checkpoints", checkpoints=saved, **arguments))


@pytest.mark.parametrize("count", [2, 3])
def test_each_of_three_points_has_its_own_loss_at_its_coordinates(count: int) -> None:
    saved = states(3)
    module = loaded(saved[0], re_estimate=False) if count == 2 else network(5)
    given = saved[1:] if count == 2 else saved
    found = grid_through(module, given, resolution=3, span=1.0)
    assert found.path is not None
    # The path holds the second and the third point, and the one at the origin.
    for (x, y), state in zip(found.path.tolist(), [saved[1], saved[2], saved[0]], strict=True):
        expected = float(cross_entropy(loaded(state)(X), Y))
        assert loss_at(module, given, x, y) == pytest.approx(expected, abs=1e-6)


def loss_at(module: nn.Module, saved: Any, x: float, y: float) -> float:
    """What the plane has at a place, by the grid that the probe lays and the pass that it makes."""
    from lightning_probes.callbacks.paths.batch_norm import recalibrated_buffers
    from lightning_probes.callbacks.paths.planes import find_grid

    losses = []

    class Looks(LossPlane):
        def measure(self, view: Any) -> Any:
            grid = find_grid(view, "checkpoints", saved, 3, 1.0, self.say)
            assert grid is not None
            point = grid.plane.at(x, y)
            losses.append(float(view.mean_loss({**point, **recalibrated_buffers(view, point)})))
            return super().measure(view)

    Looks(directions="checkpoints", checkpoints=saved, resolution=3, micro_batch_size=64, num_samples=64).evaluate(
        module, loader(X, Y)
    )
    return losses[0]


def test_checkpoints_of_the_run_itself_are_its_trajectory(tmp_path: Path) -> None:
    probe = LossPlane(directions="trajectory", resolution=3, num_samples=64, micro_batch_size=64)
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=3, save_last=True)
    module = network()
    fit = trainer(max_epochs=3, callbacks=[probe, saves], enable_checkpointing=True, default_root_dir=tmp_path)
    fit.fit(module, loader(X, Y))
    found = surface(probe.results)
    assert found.path_labels == ("step 3", "step 6", "step 9", "step 12")
    by_hand = whole(module, directions="trajectory", checkpoints=str(tmp_path / "epoch*.ckpt"), resolution=3)
    assert surface(by_hand).path_labels == ("step 3", "step 6", "step 9", "now")
    assert surface(by_hand).values == pytest.approx(found.values)


def test_an_event_before_there_are_two_checkpoints_says_so_and_the_next_one_measures(tmp_path: Path) -> None:
    probe = LossPlane(directions="trajectory", resolution=3, schedule=[EveryNSteps(4), AtFitEnd()])
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=3)
    with pytest.warns(UserWarning, match="fewer than two checkpoints before this step"):
        trainer(max_epochs=3, callbacks=[probe, saves], enable_checkpointing=True).fit(network(), loader(X, Y))
    assert [entry["step"] for entry in probe.history] == [8, 12]


def test_a_file_that_is_no_checkpoint_of_this_model_is_passed_over_and_named(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "global_step": 1}, tmp_path / "other.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"")
    probe = LossPlane(directions="trajectory", resolution=3)
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=3)
    with pytest.warns(UserWarning, match="broken.ckpt' can't be read") as said:
        trainer(max_epochs=3, callbacks=[probe, saves], enable_checkpointing=True).fit(network(), loader(X, Y))
    texts = " ".join(str(each.message) for each in said)
    assert "does not belong to this module" in texts
    assert surface(probe.results).path_labels == ("step 3", "step 6", "step 9", "step 12")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"directions": "trajectory"}, ("needs 2 saved checkpoints or more", "0 at most", "checkpoints=")),
        ({"directions": "trajectory", "checkpoints": "none/*.ckpt"}, ("checkpoints='none/\\*.ckpt' names no file",)),
        ({"directions": "trajectory", "checkpoints": "none.ckpt"}, ("none.ckpt' can't be opened", "checkpoints=")),
        ({"directions": "checkpoints", "checkpoints": [{}]}, ("checkpoints does not belong to this module",)),
    ],
)
def test_what_gives_no_plane_is_refused_before_the_first_step(arguments: Any, words: tuple[str, ...]) -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises((ValueError, MisconfigurationException)) as caught:
        trainer(max_epochs=1, callbacks=[LossPlane(**arguments)]).fit(module, loader(X, Y))
    for word in words:
        assert word.replace("\\", "") in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_run_that_keeps_its_last_checkpoint_alone_is_refused_before_the_first_step(tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path, save_top_k=1)
    with pytest.raises(
        MisconfigurationException, match=r"this run keeps 1 at most: add ModelCheckpoint\(save_top_k=-1"
    ):
        trainer(max_epochs=1, callbacks=[LossPlane(directions="trajectory"), saves], enable_checkpointing=True).fit(
            network(), loader(X, Y)
        )


@pytest.mark.parametrize(("number", "wanted"), [(1, "2 or 3"), (4, "2 or 3")])
def test_a_number_of_states_that_span_no_plane_is_refused(number: int, wanted: str) -> None:
    saved = [network(seed).state_dict() for seed in range(number)]
    with pytest.raises(ValueError, match=rf"checkpoints has {number} different states, and the plane needs {wanted}"):
        whole(network(9), directions="checkpoints", checkpoints=saved)


def test_states_on_one_line_are_refused() -> None:
    start, end = network(1).state_dict(), network(2).state_dict()
    middle = {name: torch.lerp(start[name].double(), end[name].double(), 0.5).to(start[name]) for name in start}
    with pytest.raises(MisconfigurationException, match=r"no plane through the checkpoints .*on one line"):
        whole(loaded(start, re_estimate=False), directions="checkpoints", checkpoints=[middle, end])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"checkpoints": "a.ckpt"}, "random directions do not use checkpoints="),
        ({"directions": "checkpoints"}, "directions='checkpoints' needs two checkpoints or three"),
    ],
)
def test_checkpoints_go_with_the_directions_that_need_them(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LossPlane(**arguments)


# -- long grids --------------------------------------------------------------------------------------------------------


def test_a_long_grid_shows_in_the_trainers_bar_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    probe = LossPlane(resolution=7)
    trainer(max_epochs=1, callbacks=[probe, TQDMProgressBar()], enable_progress_bar=True).fit(network(), loader(X, Y))
    shown = capsys.readouterr()
    assert "Epoch 0 (plane 50%): " in shown.out
    assert "Epoch 0 (plane 100%): " in shown.out
    assert "plane" not in shown.err.replace("LossPlane 'plane'", "")


def test_an_interrupted_grid_ends_at_once_is_not_reported_and_leaves_the_weights(tmp_path: Path) -> None:
    passes: list[int] = []

    def loss(module: Any, batch: Any) -> Tensor:
        if not module.training:
            passes.append(1)
            if len(passes) == 60:
                raise KeyboardInterrupt
        return cross_entropy(module(batch[0]), batch[1])

    module = network()
    probe = LossPlane(resolution=21, loss_fn=loss, schedule=EveryNSteps(1, start=2, stop=2))
    reference = network()
    trainer(max_steps=2, max_epochs=1).fit(reference, loader(X, Y))
    fit = trainer(max_epochs=1, callbacks=[probe])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit.fit(module, loader(X, Y))
    assert len(passes) == 60
    assert not probe.history
    assert not probe.results
    assert all(torch.equal(reference.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
