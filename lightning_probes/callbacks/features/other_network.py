"""The layers of another network on the samples of a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_probes.callbacks.features.similarity import look_at
from lightning_probes.functional.features.feature_matrix import Tokens
from lightning_probes.functional.features.layer_hsic import Layers
from lightning_probes.probing.checks import check_logits, check_loss
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.layer_features import LayerFeatures, choose_layers, unpooled
from lightning_probes.probing.run.init_state import StateDict
from lightning_probes.probing.view import ModelView


@dataclass(frozen=True)
class OtherNetwork:
    """Another network, or other parameters of the same one.

    Attributes:
        layers: Its layers.
        module: The network; None for the same one.
        state: Parameters and buffers of the same network; None for another one.
    """

    layers: LayerFeatures
    module: nn.Module | None = None
    state: StateDict | None = None

    @classmethod
    def of(
        cls, view: ModelView, module: nn.Module, chosen: str | Sequence[str], tokens: Tokens, split: str,
        before: Sequence[str],
    ) -> OtherNetwork:  # fmt: skip
        """Choose the layers of another network; `before` as for `choose_layers`.

        Raises:
            MisconfigurationException: If it does not run on the samples; the message names `other`.
        """
        seen = _view_on(view, module)
        try:
            (check_loss if seen.has_loss() else check_logits)(seen, split)
            return cls(choose_layers(seen, chosen, unpooled(tokens), split, before), module)
        except MisconfigurationException as error:
            raise MisconfigurationException(f"other= does not run on the samples: {error}") from error

    def look(self, view: ModelView, split: str) -> list[Layers]:
        """Its layers on each of this process's micro-batches, kept on the CPU. Cost: one forward pass."""
        seen, params = view, None
        if self.module is not None:
            seen = _view_on(view, self.module)
        elif self.state is not None:
            now = {**dict(view.module.named_parameters()), **dict(view.module.named_buffers())}
            params = {name: tensor.to(now[name]) for name, tensor in self.state.items() if name in now}
        cpu = torch.device("cpu")
        return [look_at(seen, self.layers, batch, split, params).to(cpu) for batch in seen.batches(split)]


def _view_on(view: ModelView, module: nn.Module) -> ModelView:
    """The same samples through another network, which stays as it is."""
    return replace(view, twin=Twin(module), init_state=None, trials=[])
