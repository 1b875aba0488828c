"""AttentionDistance on networks with known attention, and on transformers against their own weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_probes import AttentionDistance, EveryNSteps
from lightning_probes.functional.features.attention_distance import grid_distances
from tests.callbacks.models import Supervised, classification, loader, trainer


class Transformer(nn.Module):
    """Patches of four of a signal of 40 points, a CLS token, two blocks of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.cls = nn.Linear(4, 16), nn.Parameter(torch.randn(1, 1, 16))
        block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.blocks, self.head = nn.TransformerEncoder(block, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x.unflatten(1, (10, 4)))
        return self.head(self.blocks(torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1))[:, 0])


def transformer() -> Supervised:
    torch.manual_seed(0)
    return Supervised(Transformer())


def values(module: Any, data: Any, **arguments: Any) -> dict[str, Any]:
    return dict(AttentionDistance(**arguments).evaluate(module, data))


def test_attention_without_queries_is_uniform() -> None:
    module = transformer()
    for name, parameter in module.named_parameters():
        if "in_proj" in name:
            nn.init.zeros_(parameter)
    found = values(module, loader(*classification(inputs=40)), patch_size=4)
    for key in ("mean", "min", "max", "uniform"):
        assert found[f"attention/{key}"].value == pytest.approx(13.2, rel=1e-5)
    assert found["attention/entropy"].value == pytest.approx(np.log(10), rel=1e-5)
    assert found["attention/cls_mass"].value == pytest.approx(1 / 11, rel=1e-5)
    assert found["attention/distance"].row_labels == ("net.blocks.layers.0.self_attn", "net.blocks.layers.1.self_attn")
    assert found["attention/distance"].values.shape == (2, 2)


def test_distances_are_those_of_the_layers_own_weights() -> None:
    module, (x, y) = transformer(), classification(inputs=40)
    found = values(module, loader(x, y), num_samples=64)
    net = module.net.eval()
    with torch.no_grad():
        tokens = net.patches(x.unflatten(1, (10, 4)))
        stream = torch.cat([net.cls.expand(len(x), -1, -1), tokens], 1)
        weights = net.blocks.layers[0].self_attn(stream, stream, stream, average_attn_weights=False)[1][..., 1:, 1:]
    kept = weights / weights.sum(-1, keepdim=True)
    expected = (kept * grid_distances((10,))).sum(-1).mean((0, 2)).sort().values
    assert found["attention/distance"].values[0] == pytest.approx(expected.numpy(), rel=1e-5)
    assert found["attention/mean"].standard_error > 0
    plain = values(module, loader(x, y), num_samples=64, renormalize=False)
    assert plain["attention/mean"].value < found["attention/mean"].value


def test_micro_batches_of_any_size_give_the_same_means() -> None:
    data = loader(*classification(samples=50, inputs=40))
    one, other = (values(transformer(), data, micro_batch_size=size) for size in (50, 7))
    for key in ("mean", "min", "max", "uniform", "entropy", "cls_mass"):
        assert one[f"attention/{key}"].value == pytest.approx(other[f"attention/{key}"].value, rel=1e-6)


def test_only_the_chosen_layers_are_measured() -> None:
    found = values(transformer(), loader(*classification(inputs=40)), layers="*1.self_attn")
    assert found["attention/distance"].row_labels == ("net.blocks.layers.1.self_attn",)
    with pytest.raises(MisconfigurationException, match="layers: 'blocks' matches nothing"):
        values(transformer(), loader(*classification(inputs=40)), layers="blocks")


class Crossing(nn.Module):
    """Ten tokens attend to three."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (10, 4))
        return self.head(self.attention(tokens, tokens[:, :3], tokens[:, :3])[0].mean(1))


def test_a_network_without_distances_is_refused_before_the_first_step() -> None:
    data = loader(*classification(inputs=40))
    with pytest.raises(MisconfigurationException, match=r'no attention was seen .*attn_implementation="sdpa"'):
        values(Supervised(nn.Linear(40, 3)), data)
    with pytest.raises(MisconfigurationException, match="queries and keys differ in number in each of 1 attention"):
        values(Supervised(Crossing()), data)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.jit.script(fused)(x.unflatten(1, (10, 4))).mean(1))


def fused(x: Tensor) -> Tensor:
    return torch.matmul(torch.softmax(torch.matmul(x, x.transpose(1, 2)), -1), x)


def test_attention_in_compiled_code_is_refused_with_what_to_set() -> None:
    with pytest.raises(MisconfigurationException, match="fused kernel or compiled code hides it"):
        values(Supervised(Fused()), loader(*classification(inputs=40)))


def loss(module: Any, batch: Any) -> Tensor:
    output = module(**batch)
    return (output[0] if isinstance(output, tuple) else output.last_hidden_state).square().mean()


def of_transformers(kind: str, implementation: str) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "attn_implementation": implementation,
    }  # fmt: skip
    image = {"image_size": 16, "patch_size": 4}
    ids = torch.randint(5, 90, (8, 9))
    mask = (torch.arange(9) < torch.tensor([9, 7, 5, 9, 9, 8, 4, 9])[:, None]).long()
    text = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)]
    images = [{"pixel_values": each} for each in torch.randn(8, 3, 16, 16)]
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**small, **image)), images
    if kind == "swin":
        sizes = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2}
        config = transformers.SwinConfig(**image, **sizes, attn_implementation=implementation)
        return transformers.SwinModel(config), images
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(vocab_size=100, **small)), text
    config = transformers.LlamaConfig(vocab_size=100, num_key_value_heads=2, **small)
    return transformers.LlamaModel(config), text


@pytest.mark.parametrize("kind", ["vit", "bert", "llama", "swin"])
def test_transformers_in_both_implementations_agree_with_their_own_weights(kind: str) -> None:
    found = {}
    transformers = pytest.importorskip("transformers")
    if kind == "swin" and not transformers.SwinModel._supports_sdpa:
        pytest.skip("this version of Transformers has Swin in eager mode only")
    for implementation in ("sdpa", "eager"):
        module, samples = of_transformers(kind, implementation)
        found[implementation] = values(module, DataLoader(samples, 8), loss_fn=loss, num_samples=8)
    sdpa, eager = (found[which]["attention/distance"] for which in ("sdpa", "eager"))
    assert sdpa.values == pytest.approx(eager.values, rel=1e-4)
    for key in ("mean", "uniform", "entropy"):
        one, other = (found[which][f"attention/{key}"].value for which in ("sdpa", "eager"))
        assert one == pytest.approx(other, rel=1e-4)
    with torch.no_grad():
        stacked = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
        own = module.eval()(**stacked, output_attentions=True).attentions
    prefix, grid, scale = {"vit": (1, (4, 4), 4), "swin": (0, (2, 2), 1)}.get(kind, (0, (9,), 1))
    real = stacked["attention_mask"].bool() if "attention_mask" in stacked else torch.ones(1, 1, dtype=torch.bool)
    rows_of_own = eager.values[1::2] if kind == "swin" else eager.values  # it returns those of each stage's last block
    for row, weights in zip(rows_of_own, own, strict=True):
        kept = weights[..., prefix:, prefix:]
        rows = scale * (kept / kept.sum(-1, keepdim=True) * grid_distances(grid)).sum(-1)
        chosen = real[:, None].expand_as(rows) if len(real) > 1 else torch.ones_like(rows, dtype=torch.bool)
        by_head = (rows * chosen).sum((0, 2)) / chosen.sum((0, 2))
        expected = by_head.sort().values.repeat_interleave(len(row) // len(by_head))
        assert row == pytest.approx(expected.numpy(), rel=1e-4)


def test_history_and_pictures_of_a_fit() -> None:
    probe = AttentionDistance(schedule=EveryNSteps(4), patch_size=4)
    trainer(max_epochs=2, callbacks=[probe]).fit(transformer(), loader(*classification(inputs=40)))
    assert {entry["step"] for entry in probe.history} >= {0, 4}
    assert probe.figure() is not None
