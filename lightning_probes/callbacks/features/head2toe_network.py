"""A frozen network with a linear head on selected features of all its layers, for data of another task."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import linear

from lightning_probes.callbacks.features.head2toe import Head2Toe
from lightning_probes.callbacks.features.labelled_features import LabelledFeatures
from lightning_probes.functional.features.feature_selection import Labelled, Selection, select_features, unit_rows
from lightning_probes.functional.features.pooling import Pooling, TokenPooling
from lightning_probes.probing.checks import check_logits, naming
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.quiet import measuring
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.layers import watch_layers
from lightning_probes.probing.objective import Objective, PredictFn
from lightning_probes.probing.values import check_function, check_whole_number
from lightning_probes.probing.view import ModelView


class Head2ToeNetwork(LightningModule):
    """A backbone, some of the features of its layers, and a linear head on these. All of it is frozen.

    Called like the backbone, it returns logits. A Trainer can `validate`, `test` and `predict` with it, on batches like
    those of a probe. `head2toe` makes it. To load one, load its `state_dict()` into ``Head2ToeNetwork(backbone)``.

    Args:
        backbone: The network whose features are used. It is not copied, and is frozen.
        predict_fn: `predict_fn(module, batch)` runs the backbone on a batch and returns logits, which are not used, and
            targets; only for a Trainer.

    Attributes:
        relevance: Each layer's share of the relevance, in forward order.
        fraction: The share of the features that was asked for.
        accuracy: On the validation data that chose the fraction: the largest of several, so a little too large.
        residual: The largest relative residual of all heads that were fitted; they have converged up to 0.001.
    """

    kept: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, backbone: nn.Module, predict_fn: PredictFn | None = None) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self._objective = Objective(None, predict_fn)
        self._poolings: dict[str, Pooling] = {}
        self.relevance: dict[str, float] = {}
        self.fraction = self.accuracy = self.residual = float("nan")
        self.register_buffer("kept", torch.zeros(0, dtype=torch.long))
        self.register_buffer("weight", torch.zeros(0, 0))
        self.register_buffer("bias", torch.zeros(0))
        self.eval()

    def train(self, mode: bool = True) -> Head2ToeNetwork:
        """Stay in eval mode: nothing of this network is trained."""
        super().train(False)
        return self

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Logits, (samples, classes), for the inputs of the backbone."""
        with self._watched() as found:
            self.backbone(*inputs, **named)
        return self._head(found)

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Logits of a batch."""
        return self._of_batch(batch)[0]

    def validation_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Log `val/accuracy`."""
        self._score("val/accuracy", batch)

    def test_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Log `test/accuracy`."""
        self._score("test/accuracy", batch)

    def get_extra_state(self) -> dict[str, Any]:
        """Which features of the backbone are used, and what is known of the selection."""
        return {
            "layers": {name: (p.axis, list(p.cells), p.first_token) for name, p in self._poolings.items()},
            "relevance": self.relevance,
            "found": (self.fraction, self.accuracy, self.residual),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self._poolings = {
            name: Pooling(axis, tuple(cells), first) for name, (axis, cells, first) in state["layers"].items()
        }
        self.relevance = dict(state["relevance"])
        self.fraction, self.accuracy, self.residual = state["found"]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("kept", "weight", "bias"):  # another selection may keep another number of features
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @contextmanager
    def _watched(self) -> Iterator[dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def see(name: str, output: Any) -> None:
            if name in self._poolings:
                found[name] = unit_rows(self._poolings[name](output))

        with torch.no_grad(), watch_layers(self.backbone, see):
            yield found

    def _head(self, found: Mapping[str, Tensor]) -> Tensor:
        if missing := [name for name in self._poolings if name not in found]:
            raise RuntimeError(f"layer {missing[0]!r} did not run, and the head needs its features")
        if not self._poolings:
            raise RuntimeError("this network has no head yet: load the state_dict of one made by head2toe")
        features = torch.cat([found[name] for name in self._poolings], 1)
        return linear(features[:, self.kept].to(self.weight), self.weight, self.bias)

    def _of_batch(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        with self._watched() as found:
            _, targets = self._objective.logits(self.backbone, batch)
        return self._head(found), targets

    def _score(self, key: str, batch: Any) -> None:
        logits, targets = self._of_batch(batch)
        if targets is not None:
            hits = (logits.argmax(1) == targets.reshape(-1)).float()
            self.log(key, hits.mean(), batch_size=len(hits), on_epoch=True, on_step=False)

    def _set(self, chosen: LabelledFeatures, selection: Selection) -> None:
        for name, rows in chosen.layers.rows.items():
            assert isinstance(rows, Pooling)
            self._poolings[name] = rows
        shares = chosen.by_layer(selection.relevance / selection.relevance.sum())
        self.relevance = dict(zip(chosen.layers.widths, shares, strict=True))
        head = selection.chosen.head
        self.kept, self.weight, self.bias = selection.kept, head.weights.mT.float().contiguous(), head.bias.float()
        self.fraction, self.accuracy, self.residual = selection.fraction, selection.chosen.accuracy, selection.residual


def head2toe(
    module: nn.Module, train: Any, val: Any, *, layers: str | Sequence[str] = "auto", tokens: TokenPooling = "auto",
    max_features: int = 64, fraction: float | None = None, penalty: float = 0.05, predict_fn: PredictFn | None = None,
    num_samples: int = 8192, seed: int = 0,
) -> Head2ToeNetwork:  # fmt: skip
    """A linear head on selected features of all layers of a network (Evci et al. 2022, arXiv:2201.03529).

    Where a new task needs what the last layer has thrown away, this often does as well as fine-tuning, for one forward
    pass over the data. See `Head2Toe` for the selection. Heads are fitted on `train`; the fraction of features and the
    ridge are chosen on `val`.

    Args:
        module: The network. It is copied, and not changed.
        train: A DataLoader or Dataset of batches such as (inputs, classes).
        val: Another one, of samples that are not in `train`.
        layers: See `Head2Toe`.
        tokens: See `Head2Toe`.
        max_features: See `Head2Toe`.
        fraction: See `Head2Toe`.
        penalty: See `Head2Toe`.
        predict_fn: `predict_fn(module, batch)` runs the module on a batch, and returns logits and the classes of the
            new task; needed for batches of another form.
        num_samples: Number of samples to draw from each loader, at most.
        seed: Decides which samples are drawn.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: If there is not one class for each sample, or no layer can be used.

    Example:
        >>> signals = torch.randn(300, 4)
        >>> data = torch.utils.data.TensorDataset(signals, (signals[:, 0] > 0).long())
        >>> train, val = torch.utils.data.random_split(data, [200, 100])
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> network = head2toe(backbone, train, val)
        >>> network(signals).shape, [*network.relevance]
        (torch.Size([300, 2]), ['0', '1', '2'])
    """
    check_function("predict_fn", predict_fn)
    check_whole_number("num_samples", num_samples, least=1)
    check_whole_number("seed", seed)
    asked = Head2Toe(layers=layers, tokens=tokens, max_features=max_features, fraction=fraction, penalty=penalty)
    with measuring(), naming("head2toe"):
        drawing = Drawing(num_samples, seed=seed)
        data = {"train": drawing.draw(train), "val": drawing.draw(val)}
        view = ModelView(Twin(module), Objective(None, predict_fn), data, seed)
        for split in data:
            check_logits(view, split)
        chosen = LabelledFeatures.choose(view, layers, tokens, max_features, "train")
        (fitted, _), (held_out, _) = (chosen.read(view, split) for split in data)
        selection = select_features(fitted, held_out, _classes(fitted, held_out), penalty, asked.fractions)
    network = Head2ToeNetwork(copy.deepcopy(module), predict_fn)
    network._set(chosen, selection)
    return network.to(view.device)


def _classes(*parts: Labelled) -> int:
    labels = torch.cat([part.labels for part in parts])
    if int(labels.min()) < 0:
        raise MisconfigurationException(
            f"classes are numbered from 0, and one is {int(labels.min())}: pass predict_fn=lambda module, batch: "
            "(logits, targets) with the index of a class for each sample"
        )
    return int(labels.max()) + 1
