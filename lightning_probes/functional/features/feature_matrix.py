"""One row of features per sample, from the return value of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_probes.functional.plain import plain

Tokens = Literal["flatten", "mean", "cls"]


def feature_matrix(output: object, tokens: Tokens = "flatten") -> Tensor:
    """One row of features per sample, from the return value of a layer.

    From a tuple, list, mapping or dataclass, the first floating-point tensor with a sample axis is used. In mappings
    and dataclasses ``last_hidden_state`` and ``logits`` come first. Scalars (a loss), integers and ``None`` are
    skipped. The first axis is the sample axis. Three axes are read as (n, tokens, dim): ``"mean"`` and ``"cls"`` suit
    token sequences, not the (n, channels, length) of a one-dimensional convolution. Four or more axes are read as
    (n, channels, ...). Nested samples are padded with zeros. Other padding is not removed and counts like any token.

    Args:
        output: The layer's return value.
        tokens: ``"flatten"`` keeps every token or position as features of its sample (all samples need the same
            number of tokens). ``"mean"`` averages over tokens or spatial positions. ``"cls"`` takes the first token; it
            flattens outputs without tokens.

    Returns:
        (n, d), a view if possible: a later in-place layer may overwrite it, so use it at once.

    Raises:
        TypeError: If there is no such tensor, or it is sparse or a packed sequence.
        ValueError: If ``tokens`` has another value.

    Example:
        >>> feature_matrix((torch.zeros(8, 5, 16), None), tokens="mean").shape
        torch.Size([8, 16])
    """
    if tokens not in get_args(Tokens):
        raise ValueError(f"tokens must be one of {get_args(Tokens)}, got {tokens!r}.")
    features = features_of(output)
    if tokens == "cls" and features.ndim == 3:
        return features[:, 0]
    if tokens == "mean" and features.ndim >= 3:
        space = 1 if features.ndim == 3 else tuple(range(2, features.ndim))
        return features.mean(space, dtype=torch.promote_types(features.dtype, torch.float32))
    return features.reshape(len(features), -1)


def features_of(output: object) -> Tensor:
    """The features in the return value of a layer, (samples, ...); see `feature_matrix`.

    Raises:
        TypeError: If there are none.

    Example:
        >>> features_of((None, torch.zeros(8, 5, 16))).shape
        torch.Size([8, 5, 16])
    """
    features = _first_features(output)
    if features is None:
        raise TypeError(
            f"a layer returned {_describe(output)}, which holds no dense floating-point tensor with one row per "
            "sample: leave that layer out of `layers`"
        )
    features = plain(features)
    if features.is_nested:  # nn.TransformerEncoder passes these between its layers in eval mode, given a padding mask
        features = torch.nested.to_padded_tensor(features, 0.0)
    return features


def _first_features(output: object) -> Tensor | None:
    """The first floating-point tensor with a sample axis that is not sparse, depth first."""
    if isinstance(output, Tensor):
        readable = output.is_nested or output.layout == torch.strided
        return output if readable and output.is_floating_point() and output.ndim >= 1 else None
    if isinstance(output, PackedSequence):  # a tuple whose rows are time steps of several samples
        return None
    if is_dataclass(output) and not isinstance(output, Mapping):
        output = {field.name: getattr(output, field.name) for field in fields(output)}
    if isinstance(output, Mapping):
        main = [output[key] for key in ("last_hidden_state", "logits") if key in output]
        parts = [*main, *output.values()]
    elif isinstance(output, tuple | list):
        parts = list(output)
    else:
        return None
    return next((found for found in map(_first_features, parts) if found is not None), None)


def _describe(output: object) -> str:
    """Type of a layer's output; for a tensor also its dims, layout and dtype."""
    if isinstance(output, Tensor):
        return f"a {output.ndim}-d {output.layout} tensor of {output.dtype}"
    return type(output).__name__
