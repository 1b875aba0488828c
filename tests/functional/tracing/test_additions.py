"""Residual additions are found by following the data, in any module; what is no residual addition is not."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

import lightning_probes
from lightning_probes.functional.tracing.additions import Addition, Course, follow_additions
from tests.functional.tracing.networks import NETWORKS, SAMPLES, Made, encoder


def found(net: nn.Module, *inputs: Tensor, known: Course | None = None) -> Course:
    return follow_additions(net.eval(), len(inputs[0]), lambda: net(*inputs), known=known)[0]


def function(forward: Callable[..., Tensor]) -> nn.Module:
    """A module with two square layers `a` and `b`, and a norm, that computes something on (4, 6) inputs."""

    class Computing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)
            self.register_buffer("table", torch.randn(4, 6))
            self.bias = nn.Parameter(torch.zeros(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    torch.manual_seed(0)
    return Computing()


# Before Transformers 5, T5 added the mask of the batch to a bias that its later blocks use again: an ancestor of the
# scores to which they add it. That is one addition too many.
OLD_T5 = pytest.mark.xfail(Version(transformers.__version__) < Version("5"), reason="T5 reuses a bias with its mask")
COUNTED = [pytest.param(*each, id=name, marks=OLD_T5 if name == "t5" else ()) for name, each in NETWORKS.items()]


@pytest.mark.parametrize(("make", "number"), COUNTED)
@pytest.mark.parametrize("gradients", [True, False])
def test_all_residual_additions_are_found_and_no_others(make: Callable[[], Made], number: int, gradients: bool) -> None:
    net, run = make()
    with torch.set_grad_enabled(gradients):
        course, _ = follow_additions(net, SAMPLES, run)
        again, _ = follow_additions(net, SAMPLES, run, known=course)
    assert len(course.additions) == number
    assert again is course
    assert len({addition.name for addition in course.additions}) == number


def masked_twice(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    """The same bias for two layers, as for the scores of all blocks of T5: an ancestor of what it is added to."""
    bias = mask * net.bias
    return net.b((net.a(x) + bias).relu()) + bias


RESIDUAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "operands in the other order": lambda net, x: net.a(x).relu() + x,
    "torch.add": lambda net, x: torch.add(x, net.a(x)),
    "in place": lambda net, x: net.a(x).relu().add_(x),
    "in place by torch": lambda net, x: torch.nn.functional.relu(net.a(x), inplace=True) + x,
    "a view and back": lambda net, x: x.view(4, 2, 3).flatten(1) + net.a(x.reshape(4, 6)),
    "into an item": lambda net, x: overwritten(net, x) + x,
    "weights made from parameters": lambda net, x: x + x @ (net.a.weight / net.a.weight.norm()),
    "a cast": lambda net, x: x.double() + net.a(x).double(),
    "norm and projection": lambda net, x: net.norm(net.a(x)) + net.b(net.a(x).relu()),
}
OTHER: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a branch without parameters": lambda net, x: x + x.tanh(),
    "a buffer": lambda net, x: net.a(x) + net.table,
    "a parameter": lambda net, x: x + net.bias,
    "a mask that an earlier layer has used, too": lambda net, x: masked_twice(net, x, torch.ones(4, 6)),
    "another buffer, scaled": lambda net, x: x + x * net.table,
    "two affine ways": lambda net, x: net.a(x) + net.b(x),
    "two ways that are not affine": lambda net, x: net.a(x).relu() + net.b(x).tanh(),
    "a gated skip": lambda net, x: x + net.a(x).sigmoid() * (net.b(x) - x),
    "a rotation": lambda net, x: rotated(net.a(x), net.table),
    "a difference": lambda net, x: x - net.a(x),
    "a multiple": lambda net, x: torch.add(x, net.a(x), alpha=2),
    "by another sample": lambda net, x: x.sum(0) + net.a(x).sum(0),
    "rows that are no samples, with as many features as samples": lambda net, x: of_rows(net, x.repeat(2, 1)),
    "a mean of columns": lambda net, x: x[:3] + net.a(x)[:3],
}


def overwritten(net: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :3] = net.a(x)[:, :3].relu()
    return out


def of_rows(net: Any, rows: Tensor) -> Tensor:
    return rows[:, :4] + net.a(rows)[:, :4]


def rotated(q: Tensor, table: Tensor) -> Tensor:
    return q * table.cos() + torch.cat([-q[:, 3:], q[:, :3]], 1) * table.sin()


@pytest.mark.parametrize("forward", RESIDUAL.values(), ids=RESIDUAL)
def test_an_addition_is_residual_however_it_is_written(forward: Callable[[Any, Tensor], Tensor]) -> None:
    assert len(found(function(forward), torch.randn(4, 6)).additions) == 1


@pytest.mark.parametrize("forward", OTHER.values(), ids=OTHER)
def test_other_sums_are_no_residual_additions(forward: Callable[[Any, Tensor], Tensor]) -> None:
    assert found(function(forward), torch.randn(4, 6)).additions == []


def test_blocks_have_the_name_of_the_module_that_returned_the_branch() -> None:
    net = function(lambda net, x: x + net.bias * net.a(x).relu())
    assert [addition.name for addition in found(net, torch.randn(4, 6)).additions] == ["a"]


def test_a_block_that_runs_twice_has_two_names() -> None:
    def twice(net: Any, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + net.a(x)
        return x

    additions = found(function(twice), torch.randn(4, 6)).additions
    assert additions == [Addition("a", 0, None), Addition("a#2", 0, 0)]


def test_two_streams_are_two_stages() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder(True)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.encoder(x), self.encoder(-x)])

    course = found(Siamese(), torch.randn(4, 5, 12))
    assert course.stages == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_a_stage_ends_where_the_stream_changes_its_shape() -> None:
    net, run = NETWORKS["basic"][0]()
    assert follow_additions(net, SAMPLES, run)[0].stages == [[0], [1, 2]]


def test_samples_may_be_in_the_second_dim() -> None:
    net = nn.TransformerEncoderLayer(12, 4, 24)
    x = torch.randn(5, 3, 12)
    course, _ = follow_additions(net.eval(), 3, lambda: net(x))
    assert len(course.additions) == 2


class Hidden(torch.autograd.Function):
    """What the function mode can't see inside: `relu(x)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.relu() * 2


@pytest.mark.parametrize("hidden", [Hidden.apply, scripted])
@pytest.mark.parametrize("first", [True, False])
def test_a_branch_with_code_that_cant_be_seen_is_found(hidden: Callable[[Tensor], Tensor], first: bool) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(hidden(self.a(x))) if first else hidden(self.b(self.a(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = Branch()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    assert [addition.name for addition in found(Block(), torch.randn(4, 6)).additions] == ["branch"]


def test_another_course_is_noticed_and_followed_anew() -> None:
    runs = []

    def forward(net: Any, x: Tensor) -> Tensor:
        x = x + net.a(x)
        return x + net.b(x) if net.deeper else x

    net = function(forward)
    net.deeper = False
    x = torch.randn(4, 6)
    course = found(net, x)
    net.deeper = True
    assert [addition.name for addition in found(net, x, known=course).additions] == ["a", "b"]
    net.deeper = False
    other, _ = follow_additions(net, 4, lambda: runs.append(net(x)), known=course)
    assert other is course
    assert len(runs) == 1


class Operands:
    """Remembers what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._operands: tuple[Tensor, Tensor] | None = None

    def operands(self, position: int, addition: Addition, skip: Tensor, branch: Tensor) -> None:
        self._operands = skip.clone(), branch.clone()

    def result(self, position: int, addition: Addition, result: Tensor) -> None:
        assert self._operands is not None
        self.seen.append((*self._operands, result.clone()))


def test_a_visitor_sees_the_operands_before_an_addition_in_place() -> None:
    net = function(lambda net, x: net.a(x).add_(x).relu_())
    x = torch.randn(4, 6)
    course = found(net, x)
    for known in (None, course):
        _, visitor = follow_additions(net, 4, lambda: net(x), Operands, known)
        assert isinstance(visitor, Operands)
        ((skip, branch, result),) = visitor.seen
        torch.testing.assert_close(skip, x)
        torch.testing.assert_close(branch, net.a(x).detach())
        torch.testing.assert_close(result, x + net.a(x).detach())


def test_a_course_can_be_sent_to_another_process() -> None:
    net, run = NETWORKS["basic"][0]()
    course, _ = follow_additions(net, SAMPLES, run)
    assert pickle.loads(pickle.dumps(course)) == course


def test_the_module_and_the_fast_path_are_left_as_they_were() -> None:
    net = encoder(True).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ValueError, match="stop"):
        follow_additions(net, 4, lambda: (net(torch.randn(4, 5, 12)), int("stop")))
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in net.modules())
    net(torch.randn(4, 5, 12))


def test_following_does_not_import_the_compiler() -> None:
    """Lightning does, so the room is imported without the package."""
    code = f"""
import sys, types
package = types.ModuleType("lightning_probes")
package.__path__ = {lightning_probes.__path__!r}
sys.modules["lightning_probes"] = package
import torch
from torch import nn
from lightning_probes.functional.tracing.additions import follow_additions
net = nn.TransformerEncoderLayer(12, 4, 24, batch_first=True).eval()
course, _ = follow_additions(net, 4, lambda: net(torch.randn(4, 5, 12)))
assert len(course.additions) == 2
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
