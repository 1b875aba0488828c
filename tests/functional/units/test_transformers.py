"""Networks of the `transformers` package."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from .exchanging import change, groups_found

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(14).reshape(2, 7)


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=12, attn_implementation=attention,
    )  # fmt: skip
    return Logits(transformers.BertForSequenceClassification(config)).eval()


def gpt2(attention: str) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=4, n_positions=12, bos_token_id=0, eos_token_id=0,
        attn_implementation=attention,
    )  # fmt: skip
    return Logits(transformers.GPT2LMHeadModel(config)).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("build", "sizes"),
    [
        # The stream, two groups for each of four heads, the hidden units of each layer; the pooler.
        (bert, [16, *[4] * 8, 32, *[4] * 8, 32, 16]),
        (gpt2, [16, *[4] * 8, 64, *[4] * 8, 64]),
    ],
)
def test_all_groups_are_found(build: Callable[[str], nn.Module], sizes: list[int], attention: str) -> None:
    torch.manual_seed(0)
    module = build(attention)
    found = groups_found(module, TOKENS)
    assert (found.unknown, found.dropped) == ((), ())
    assert [group.size for group in found.groups] == sizes
    assert change(module, found, TOKENS) < 1e-5


def test_a_weight_that_is_applied_from_the_left_has_its_axes_the_other_way_round() -> None:
    hidden = groups_found(gpt2("sdpa"), TOKENS).groups[9]
    assert hidden.name == "model.transformer.h.0.mlp.c_fc"
    assert hidden.producers == (("model.transformer.h.0.mlp.c_fc.weight", 1),)
    assert hidden.readers == (("model.transformer.h.0.mlp.c_proj.weight", 0),)


def test_embeddings_compute_units_and_a_tied_head_reads_them() -> None:
    stream = groups_found(gpt2("sdpa"), TOKENS).groups[0]
    embeddings = ("model.transformer.wte.weight", 1), ("model.transformer.wpe.weight", 1)
    assert stream.producers[:2] == embeddings
    assert stream.readers[0] == embeddings[0]
