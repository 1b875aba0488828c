"""Where the tensors of a pass come from: a graph of operations, which holds no tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lightning_probes.functional.tracing.functions import FunctionCall, tensors

_REARRANGING = """
    T mT H mH data real view view_as reshape reshape_as contiguous to float double half bfloat16 type type_as cuda cpu
    clone detach detach_ alias expand expand_as squeeze unsqueeze __getitem__ pad transpose permute flatten unflatten t
    dropout dropout_ dropout1d dropout2d dropout3d feature_dropout alpha_dropout roll avg_pool1d avg_pool2d avg_pool3d
    chunk split tensor_split narrow select movedim swapaxes swapdims masked_fill masked_fill_ requires_grad_
    as_subclass
"""
_AFFINE = """
    linear matmul mm bmm addmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm
    layer_norm group_norm instance_norm rms_norm adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d max_pool1d
    max_pool2d max_pool3d interpolate
"""
_FRESH = """
    zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full
"""
_FIXED = """
    zeros_like ones_like full_like new_zeros new_ones new_full zeros ones full eye arange linspace
"""
# Functions whose result is a constant. Random numbers are data.
FIXED = frozenset(_FIXED.split())
# Functions whose result has the elements of one argument, or local means of them, in another arrangement.
REARRANGING = frozenset(_REARRANGING.split())
# Functions that are affine in their first argument if no other one depends on the data; and pooling.
AFFINE = REARRANGING | frozenset(_AFFINE.split())
# Functions whose result has nothing of an argument but its shape, dtype and device.
FRESH = frozenset(_FRESH.split())


@dataclass(eq=False, slots=True)
class Origin:
    """How a tensor came about.

    Attributes:
        parents: Origins of the tensors that it was computed from.
        operation: The name of the function; empty if the pass did not compute the tensor.
        number: Larger than the numbers of all parents.
        constant: Whether it does not depend on the data, but at most on parameters and buffers.
        learned: Whether it is constant and depends on a parameter.
    """

    parents: tuple[Origin, ...]
    operation: str
    number: int
    constant: bool
    learned: bool

    @property
    def weighted(self) -> bool:
        """Whether the operation combines data with parameters."""
        return (
            not self.constant and self.operation not in REARRANGING and any(parent.learned for parent in self.parents)
        )

    @property
    def data(self) -> list[Origin]:
        """The parents that depend on the data."""
        return [parent for parent in self.parents if not parent.constant]

    def stripped(self) -> Origin:
        """The origin before rearrangements."""
        origin = self
        while origin.operation in REARRANGING and len(origin.data) == 1:
            origin = origin.data[0]
        return origin


class Origins:
    """The origins of the tensors of a pass.

    Args:
        module: The module that runs, whose parameters and buffers are constants.
    """

    def __init__(self, module: nn.Module) -> None:
        self._origins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._places = {place: False for buffer in module.buffers() if (place := _place(buffer))}
        self._places |= {place: True for parameter in module.parameters() if (place := _place(parameter))}
        self._inside: list[tuple[tuple[Origin, ...], bool]] = []
        self._number = 0

    def of(self, tensor: Tensor) -> Origin:
        """The origin of a tensor."""
        if tensor in self._origins:
            origin: Origin = self._origins[tensor]
        else:
            learned = self._places.get(_place(tensor))
            if learned is None and tensor.grad_fn is not None:
                origin = self._put(tensor, self._hidden())
            else:
                origin = self._put(tensor, Origin((), "", self._next(), learned is not None, bool(learned)))
        return origin

    def enter(self, layer: nn.Module, inputs: object) -> None:
        """A layer begins: operations inside it that can't be seen depend on its inputs and parameters."""
        learned = next(layer.parameters(), None) is not None
        self._inside.append((tuple(map(self.of, tensors(inputs))), learned))

    def leave(self, output: object) -> None:
        """The layer returns."""
        for tensor in tensors(output):
            if tensor not in self._origins and _place(tensor) not in self._places:
                self._put(tensor, self._hidden())
        if self._inside:
            self._inside.pop()

    def record(self, call: FunctionCall, result: object) -> None:
        """Give the tensors that a function returned, or changed in place, their origins."""
        given = call.tensors
        made = given[:1] if call.name == "__setitem__" else tensors(result)
        if call.name in REARRANGING:  # which may return what they are given; other functions then have changed it
            made = [tensor for tensor in made if not any(tensor is each for each in given)]
        if made:
            self._make(made, call.name, () if call.name in FRESH else tuple(map(self.of, given)))

    def _hidden(self) -> Origin:
        """The origin of what a custom autograd function, compiled or scripted code has computed in this layer."""
        inputs, learned = self._inside[-1] if self._inside else ((), False)
        weights = (Origin((), "", self._next(), True, True),) if learned else ()
        return Origin((*inputs, *weights), "hidden", self._next(), False, False)

    def _make(self, made: list[Tensor], operation: str, parents: tuple[Origin, ...]) -> None:
        constant = all(parent.constant for parent in parents) and (bool(parents) or operation in FIXED)
        learned = constant and any(parent.learned for parent in parents)
        for tensor in made:
            self._put(tensor, Origin(parents, operation, self._next(), constant, learned))

    def _put(self, tensor: Tensor, origin: Origin) -> Origin:
        self._origins[tensor] = origin
        return origin

    def _next(self) -> int:
        self._number += 1
        return self._number


def fewest_weights(origin: Origin, ancestor: Origin) -> int | None:
    """The smallest number of weighted operations on a way from an ancestor; None if it is no ancestor."""
    fewest, ahead = {origin: 0}, [(-origin.number, id(origin), origin)]
    while ahead:  # from late to early, so that each origin is complete when it is visited
        _, _, here = heappop(ahead)
        if here is ancestor:
            return fewest[here]
        for parent in here.data:
            if parent.number < ancestor.number:
                continue
            if parent not in fewest:
                heappush(ahead, (-parent.number, id(parent), parent))
            fewest[parent] = min(fewest.get(parent, fewest[here] + here.weighted), fewest[here] + here.weighted)
    return None


def ancestors(*origins: Origin) -> Iterator[tuple[Origin, frozenset[int]]]:
    """All ancestors that depend on the data, the latest first, each with the positions of those that it leads to."""
    reached: dict[Origin, frozenset[int]] = {}
    for position, origin in enumerate(origins):
        reached[origin] = reached.get(origin, frozenset()) | {position}
    ahead = [(-origin.number, id(origin), origin) for origin in reached]
    heapify(ahead)
    while ahead:
        _, _, here = heappop(ahead)
        yield here, reached[here]
        for parent in here.data:
            if parent not in reached:
                heappush(ahead, (-parent.number, id(parent), parent))
            reached[parent] = reached.get(parent, frozenset()) | reached[here]


def between(origin: Origin, ancestor: Origin) -> list[Origin]:
    """The operations on all ways from an ancestor to an origin, the origin's own included."""
    region = []
    for here, _ in ancestors(origin):
        if here.number <= ancestor.number:
            break
        region.append(here)
    leads = {ancestor}
    for here in reversed(region):
        if any(parent in leads for parent in here.data):
            leads.add(here)
    return [here for here in region if here in leads]


def _place(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a subclass without memory of its own
        return 0
