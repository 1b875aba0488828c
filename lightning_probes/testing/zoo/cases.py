"""The registry of cases: a model, its data, and the arguments that a probe needs. A new case is one entry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from lightning_probes.testing.zoo import data, modules
from lightning_probes.testing.zoo.data import SAMPLES, labelled, loader, normal


@dataclass(frozen=True)
class Fit:
    """The arguments of `trainer.fit`: the module, and loaders or a data module."""

    module: L.LightningModule
    train: Any = None
    val: Any = None
    datamodule: L.LightningDataModule | None = None

    def arguments(self) -> dict[str, Any]:
        if self.datamodule is not None:
            return {"datamodule": self.datamodule}
        return {"train_dataloaders": self.train, "val_dataloaders": self.val}


@dataclass(frozen=True)
class Case:
    """One entry of the zoo.

    Attributes:
        name: The name of the case, which is also part of the name of a check.
        make: Creates a new module and its data. It depends on the seeds alone, so two calls create the same.
        needs: The arguments that a probe needs here, by name, if it takes them.
    """

    name: str
    make: Callable[[], Fit]
    needs: Mapping[str, Any] = field(default_factory=dict)

    def arguments_for(self, kind: type) -> dict[str, Any]:
        """The needed arguments that this class of callback takes."""
        taken = inspect.signature(kind).parameters
        return {name: value for name, value in self.needs.items() if name in taken}


def supervised(net: nn.Module, *shape: int, **arguments: Any) -> Fit:
    return Fit(
        modules.Supervised(net, **arguments), loader(labelled(*shape)), loader(labelled(*shape, seed=1), shuffle=False)
    )


# -- batches -----------------------------------------------------------------------------------------------------------


def tuple_batch() -> Fit:
    return Fit(modules.Supervised(modules.mlp()), loader(labelled(4), collate_fn=data.as_tuple))


def list_batch() -> Fit:
    return supervised(modules.mlp(), 4)  # the default collate function makes lists


def _mapped(function: Callable[..., Any]) -> Any:
    return loader(data.Mapped(labelled(4), function))


def dict_with_labels() -> Fit:
    return Fit(modules.OnMapping(modules.mlp()), _mapped(lambda x, y: {"x": x, "labels": y, "name": "sample"}))


def dict_of_other_names() -> Fit:
    return Fit(modules.OnMapping(modules.mlp()), _mapped(lambda x, y: {"x": x, "target": y}))


def nested_tuples() -> Fit:
    return Fit(modules.Supervised(modules.TwoInputs()), _mapped(lambda x, y: ((x[:3], (x[2], x[3])), y)))


def extra_fields() -> Fit:
    return Fit(modules.Supervised(modules.mlp()), _mapped(lambda x, y: (x, y, 0.5, {"id": "a", "mask": x > 0})))


def graph_batch() -> Fit:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    sets = (data.graphs(), data.graphs(seed=1))
    train, val = (loader(part, collate_fn=data.Graphs.collate) for part in sets)
    return Fit(modules.OnGraphs(net), train, val)


def inputs_with_weighted_targets() -> Fit:
    train = _mapped(lambda x, y: ({"static": x[:1], "dynamic": x[1:]}, (x.sum(0, keepdim=True), y[None] + 1.0)))
    return Fit(modules.Weighted(modules.mlp(4, 1)), train)


# -- models ------------------------------------------------------------------------------------------------------------


def lstm() -> Fit:
    return supervised(modules.Recurrent(nn.LSTM), 5, 3)


def gru() -> Fit:
    return supervised(modules.Recurrent(nn.GRU), 5, 3)


def cnn() -> Fit:
    return supervised(modules.cnn(), 1, 8, 8)


def resnet() -> Fit:
    return supervised(modules.resnet(), 1, 12)


def tokens(samples: int = SAMPLES, length: int = 6, vocabulary: int = 20) -> Tensor:
    return torch.randint(1, vocabulary, (samples, length), generator=data.draws())


def encoded(samples: list[tuple[Tensor, Tensor, Tensor]]) -> Any:
    from transformers import BatchEncoding

    ids, mask, labels = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return BatchEncoding({"input_ids": ids, "attention_mask": mask, "labels": labels})


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "num_labels": 3}


def bert() -> Fit:
    from transformers import BertConfig, BertForSequenceClassification

    ids = tokens()
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    model = BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **TINY))
    dataset = TensorDataset(ids, mask, data.classes(ids))
    return Fit(
        modules.HuggingFace(model),
        loader(dataset, collate_fn=encoded),
        loader(dataset, collate_fn=encoded, shuffle=False),
    )


def vit() -> Fit:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, **TINY))
    images = data.Mapped(labelled(1, 8, 8), lambda x, y: {"pixel_values": x, "labels": y})
    return Fit(modules.HuggingFace(model), loader(images))


def gpt2() -> Fit:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = tokens()
    labels = ids.clone()
    labels[::3, :3] = -100  # ignored positions
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    text = data.Mapped(TensorDataset(ids, labels), lambda x, y: {"input_ids": x, "labels": y})
    return Fit(modules.HuggingFace(model), loader(text))


def unscales_in_eval() -> Fit:
    inputs = normal(SAMPLES, 4)
    return Fit(modules.UnscalesInEval(), loader(TensorDataset(inputs, inputs.sum(1, keepdim=True))))


def random_windows() -> Fit:
    return Fit(modules.DrawsWindows(), loader(normal(SAMPLES, 20).cumsum(1)))


def gan() -> Fit:
    return Fit(modules.GAN(), loader(TensorDataset(normal(SAMPLES, 4))))


# -- losses ------------------------------------------------------------------------------------------------------------


def class_weights() -> Fit:
    return supervised(modules.mlp(), 4, loss=nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])))


def label_smoothing() -> Fit:
    return supervised(modules.mlp(), 4, loss=nn.CrossEntropyLoss(label_smoothing=0.1))


def regression() -> Fit:
    inputs = normal(SAMPLES, 4)
    train = loader(TensorDataset(inputs, inputs[:, :2].sin()))
    return Fit(modules.Supervised(modules.mlp(4, 2), F.mse_loss), train, train)


def multi_label() -> Fit:
    inputs = normal(SAMPLES, 4)
    train = loader(TensorDataset(inputs, (inputs[:, :3] > 0).float()))
    return Fit(modules.Supervised(modules.mlp(), F.binary_cross_entropy_with_logits), train)


# -- data --------------------------------------------------------------------------------------------------------------


def custom_collate() -> Fit:
    sequences = data.Mapped(labelled(6, 3), lambda x, y: (x[: 3 + int(y)], y))
    return Fit(modules.Supervised(modules.Recurrent(nn.LSTM)), loader(sequences, collate_fn=data.padded))


def subset_sampler() -> Fit:
    everything = labelled(4, samples=2 * SAMPLES)
    train = loader(everything, shuffle=False, sampler=SubsetRandomSampler(range(SAMPLES)))
    held_out = loader(Subset(everything, range(SAMPLES, 2 * SAMPLES)), shuffle=False)
    return Fit(modules.Supervised(modules.mlp()), train, held_out)


def weighted_sampler() -> Fit:
    dataset = labelled(4)
    sampler = WeightedRandomSampler([1.0 + float(label) for _, label in dataset], SAMPLES)
    return Fit(modules.Supervised(modules.mlp()), loader(dataset, shuffle=False, sampler=sampler))


def global_augmentation() -> Fit:
    return Fit(modules.Supervised(modules.mlp()), loader(data.Mapped(labelled(4), data.augmented)))


def stream() -> Fit:
    return Fit(
        modules.Supervised(modules.mlp()), loader(data.Stream(labelled(4))), loader(labelled(4, seed=1), shuffle=False)
    )


def data_module() -> Fit:
    return Fit(modules.Supervised(modules.mlp()), datamodule=data.DataModule())


def several_val_loaders() -> Fit:
    val = [loader(labelled(4, seed=seed), shuffle=False) for seed in (1, 2)]
    return Fit(modules.Supervised(modules.mlp()), loader(labelled(4)), val)


def dict_of_train_loaders() -> Fit:
    train = {"labelled": loader(labelled(4)), "unlabelled": loader(TensorDataset(normal(2 * SAMPLES, 4, seed=3)))}
    return Fit(modules.OnLoaders(modules.mlp()), train, loader(labelled(4, seed=1), shuffle=False))


# -- arguments that a probe needs there --------------------------------------------------------------------------------


def predict_target(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return module(batch["x"]), batch["target"]


def predict_graphs(module: nn.Module, batch: data.Graphs) -> tuple[Tensor, Tensor]:
    return module(batch), batch.labels


def predict_windows(module: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    return module(batch[:, :6]), batch[:, 6:7]


def predict_labelled(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch["labelled"] if isinstance(batch, dict) else batch
    return module(x), y


def predict_real(module: nn.Module, batch: Any) -> tuple[Tensor, None]:
    return module(batch[0]), None


def gan_loss(module: modules.GAN, batch: Any) -> Tensor:
    return module.discriminator_loss(batch[0])


_ENTRIES: list[tuple[Callable[[], Fit], dict[str, Any]]] = [
    (tuple_batch, {}),
    (list_batch, {}),
    (dict_with_labels, {}),
    (dict_of_other_names, {"predict_fn": predict_target}),
    (nested_tuples, {}),
    (extra_fields, {}),
    (graph_batch, {"predict_fn": predict_graphs}),
    (inputs_with_weighted_targets, {"likelihood": "gaussian"}),
    (lstm, {}),
    (gru, {}),
    (cnn, {}),
    (resnet, {}),
    (bert, {}),
    (vit, {}),
    (gpt2, {}),
    (unscales_in_eval, {"likelihood": "gaussian"}),
    (random_windows, {"predict_fn": predict_windows, "likelihood": "gaussian"}),
    (gan, {"predict_fn": predict_real, "likelihood": "bernoulli", "loss_fn": gan_loss}),
    (class_weights, {}),
    (label_smoothing, {}),
    (regression, {"likelihood": "gaussian"}),
    (multi_label, {"likelihood": "bernoulli"}),
    (custom_collate, {}),
    (subset_sampler, {}),
    (weighted_sampler, {}),
    (global_augmentation, {}),
    (stream, {}),
    (data_module, {}),
    (several_val_loaders, {}),
    (dict_of_train_loaders, {"predict_fn": predict_labelled}),
]
_PACKAGES = {"bert": "transformers", "vit": "transformers", "gpt2": "transformers"}
EVERY_CASE = {make.__name__: Case(make.__name__, make, needs) for make, needs in _ENTRIES}
CASES = {
    name: case for name, case in EVERY_CASE.items() if name not in _PACKAGES or find_spec(_PACKAGES[name]) is not None
}
