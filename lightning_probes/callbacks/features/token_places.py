"""Where the tokens of an attention layer are: the grid of an image's patches, or a sequence, behind leading tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes.functional.tracing.functions import FunctionCall, tensors

_MOST_PREFIX = 8  # leading tokens: CLS, distillation and registers
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


@dataclass(frozen=True)
class Places:
    """Where the tokens of a layer are.

    Attributes:
        prefix: Number of leading tokens without a place.
        grid: Number of tokens along each axis.
        spacing: Elements of the input between neighbouring tokens; None if that is not known.
    """

    prefix: int
    grid: tuple[int, ...]
    spacing: int | None = None

    def __str__(self) -> str:
        tokens = f"{' x '.join(map(str, self.grid))} tokens"
        return tokens if self.prefix == 0 else f"{tokens} behind {self.prefix} leading"


@dataclass
class Shapes:
    """The shapes of a pass that tell where tokens are.

    Attributes:
        samples: Number of samples in the pass.
        grid: The grid, if the user has given it.
        prefix: The number of leading tokens, or "auto".
    """

    samples: int
    grid: tuple[int, ...] | None = None
    prefix: Literal["auto"] | int = "auto"
    _first: set[int] | None = None  # lengths of the sequences that enter the model
    _image: bool = False
    _lengths: set[int] = field(default_factory=set)
    _size: tuple[int, ...] = ()
    _grids: dict[int, Places] = field(default_factory=dict)

    def on_enter(self, layer: str, module: nn.Module, inputs: Any) -> None:
        """Record the lengths of the sequences that enter a layer."""
        entering = tensors(inputs)
        lengths = {length for tensor in entering if (length := self._length(tensor))}
        if self._first is None and entering:
            self._first, self._image = lengths, any(tensor.ndim > 3 for tensor in entering)
        self._lengths |= lengths

    def on_other(self, call: FunctionCall, result: Any) -> None:
        """Record the grid of a convolution."""
        if call.name not in _CONVOLUTIONS or not isinstance(result, Tensor):
            return
        axes = int(call.name[-2])
        grid = tuple(result.shape[-axes:])
        if len(self._size) != axes:
            self._size = tuple(call.tensors[0].shape[-axes:])
        self._grids[math.prod(grid)] = Places(0, grid, max(1, self._size[0] // grid[0]))

    def places(self, tokens: int) -> Places:
        """Where the tokens of a layer are.

        Raises:
            MisconfigurationException: If the grid does not fit or can't be known; the message names `grid`.
        """
        if self.grid is not None:
            return self._given(tokens, self.grid)
        prefix = self._prefix(tokens) if self.prefix == "auto" else self.prefix
        count = tokens - prefix
        found = self._grids.get(count)
        if found is not None:
            return Places(prefix, found.grid, found.spacing)
        if not self._image or count in (self._first or ()):
            if count < 1:
                raise MisconfigurationException(
                    f"a layer attends to {tokens} tokens, so no token is left behind prefix_tokens={prefix}: pass "
                    "fewer prefix_tokens="
                )
            return Places(prefix, (count,))
        side = math.isqrt(max(count, 0))
        if count < 1 or side * side != count:
            raise MisconfigurationException(
                f"a layer attends to {tokens} tokens of an image, which are no square grid behind {prefix} leading "
                "tokens: pass grid=(height, width), or layers= without this layer"
            )
        return Places(prefix, (side, side))

    def _given(self, tokens: int, grid: tuple[int, ...]) -> Places:
        prefix = tokens - math.prod(grid)
        if prefix < 0 or self.prefix not in ("auto", prefix):
            raise MisconfigurationException(
                f"grid={grid} has {math.prod(grid)} cells, which do not fit a layer that attends to {tokens} tokens: "
                "pass another grid= or prefix_tokens=, or layers= without this layer"
            )
        return Places(prefix, grid)

    def _prefix(self, tokens: int) -> int:
        """Leading tokens are joined to a sequence that has been seen without them."""
        if tokens in (self._first or ()):
            return 0
        within = range(max(tokens - _MOST_PREFIX, tokens // 2 + 1), tokens + 1)
        made = [count for count in reversed(self._grids) if count in within]
        if made:
            return tokens - made[0]
        shortest = min((length for length in self._lengths if length in within), default=tokens)
        if shortest == tokens and self._image:
            shortest = next((count for count in reversed(within) if math.isqrt(count) ** 2 == count), tokens)
        return tokens - shortest

    def _length(self, tensor: Tensor) -> int | None:
        """The length of a batch of sequences: of numbers of tokens, or of vectors."""
        if tensor.ndim == 2 and not tensor.is_floating_point():
            return tensor.shape[1]
        if tensor.ndim == 3:
            first, second = tensor.shape[:2]
            return first if second == self.samples != first else second
        return None


def common_spacing(places: Sequence[Places]) -> int:
    """The spacing of all layers; 1, which is a token, if it is not known or not the same for all."""
    spacings = {each.spacing for each in places}
    spacing = spacings.pop() if len(spacings) == 1 else None
    return spacing or 1
