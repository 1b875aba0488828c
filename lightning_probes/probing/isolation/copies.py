"""Training's own values, which callbacks get as copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_probes.probing.isolation.copying import Copier
from lightning_probes.probing.isolation.lazy import PLAIN


class Copies(Mapping[str, Any]):
    """Values by name. Each access makes a copy, so changes to the copy do not reach training.

    Args:
        originals: Tensors and other objects, such as an optimizer's lists of tensors.

    Example:
        >>> import torch
        >>> weight = torch.ones(2)
        >>> Copies({"weight": weight})["weight"].zero_(), weight
        (tensor([0., 0.]), tensor([1., 1.]))
    """

    def __init__(self, originals: Mapping[str, Any]) -> None:
        self._originals = originals

    @property
    def originals(self) -> Mapping[str, Any]:
        """The values themselves. Only read them: a change would change training."""
        return self._originals

    def __getitem__(self, name: str) -> Any:
        return copied(self._originals[name])

    def __contains__(self, name: object) -> bool:  # the inherited method would make a copy
        return name in self._originals

    def __iter__(self) -> Iterator[str]:
        return iter(self._originals)

    def __len__(self) -> int:
        return len(self._originals)


def copied(value: Any) -> Any:
    """A copy of a value, with copies of all tensors in it; a tensor is detached."""
    if type(value) in PLAIN:
        return value
    return value.detach().clone() if isinstance(value, Tensor) else Copier()(value)
