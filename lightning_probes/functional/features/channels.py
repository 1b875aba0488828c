"""Which axis of a layer's output holds the channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, instancenorm, pooling

_FIRST = (
    conv._ConvNd, batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm, nn.LocalResponseNorm,
    pooling._AvgPoolNd, pooling._MaxPoolNd, pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd, nn.Upsample,
    nn.PixelShuffle, nn.PixelUnshuffle,
)  # fmt: skip
_LAST = (
    nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip


class Channels:
    """Finds the axis of channels, from the kinds of the layers in the order in which they return.

    A convolution has channels in the second axis, a linear layer or a normalization of tokens in the last one. Any
    other module, such as an activation, leaves axes where they are: its output is read like the last one of the same
    shape. If there was none, three axes are read as (samples, tokens, channels), and more as (samples, channels, ...).

    Example:
        >>> import torch
        >>> channels, signal = Channels(), torch.zeros(8, 16, 20)
        >>> channels.axis(nn.Conv1d(3, 16, 5), signal), channels.axis(nn.ReLU(), signal), channels.axis(None, signal.mT)
        (1, 1, 2)
    """

    def __init__(self) -> None:
        self._by_shape: dict[tuple[int, ...], int] = {}

    def axis(self, layer: nn.Module | None, output: Tensor) -> int:
        """The axis of channels in the output of a layer, (samples, ...); None for a layer of unknown kind."""
        shape = tuple(output.shape[1:])
        if isinstance(layer, (*_FIRST, *_LAST)):
            self._by_shape[shape] = 1 if isinstance(layer, _FIRST) else output.ndim - 1
        return self._by_shape.get(shape, output.ndim - 1 if output.ndim == 3 else 1)
