from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from lightning_probes.functional.features.feature_matrix import feature_matrix


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "flatten", "mean", "cls"),
    [
        ((6,), (6, 1), (6, 1), (6, 1)),
        ((6, 5), (6, 5), (6, 5), (6, 5)),
        ((6, 3, 5), (6, 15), (6, 5), (6, 5)),
        ((6, 3, 4, 5), (6, 60), (6, 3), (6, 60)),
        ((6, 3, 2, 4, 5), (6, 120), (6, 3), (6, 120)),
    ],
)
def test_feature_matrix_has_one_row_per_sample(
    shape: tuple[int, ...], flatten: tuple[int, int], mean: tuple[int, int], cls: tuple[int, int]
):
    output = randn(*shape, seed=0)
    assert feature_matrix(output, "flatten").shape == flatten
    assert feature_matrix(output, "mean").shape == mean
    assert feature_matrix(output, "cls").shape == cls


def test_feature_matrix_averages_tokens_or_space_and_picks_the_first_token():
    tokens, image = randn(6, 3, 5, seed=0), randn(6, 3, 4, 5, seed=0)
    torch.testing.assert_close(feature_matrix(tokens, "mean"), (tokens[:, 0] + tokens[:, 1] + tokens[:, 2]) / 3)
    torch.testing.assert_close(feature_matrix(image, "mean")[2, 1], image[2, 1].mean())
    assert torch.equal(feature_matrix(tokens, "cls"), tokens[:, 0])
    assert torch.equal(feature_matrix(tokens, "flatten")[2], tokens[2].ravel())


def test_token_mean_of_half_precision_is_float32():
    tokens = randn(4, 50, 3, seed=0).bfloat16()
    assert torch.equal(feature_matrix(tokens, "mean"), tokens.float().mean(1))


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


features, loss, integers = torch.ones(4, 2), torch.tensor(1.0), torch.ones(4, 2, dtype=torch.long)


@pytest.mark.parametrize(
    "output",
    [
        (features, torch.zeros(4, 3)),
        [None, features],
        ((features, loss), loss),
        (loss, features),
        (integers, features),
        {"loss": loss, "other": torch.zeros(4, 3), "logits": features},
        {"logits": torch.zeros(4, 3), "last_hidden_state": features},
        {"last_hidden_state": None, "hidden": (features,)},
        Output(loss, features),
    ],
)
def test_feature_matrix_finds_the_features_in_a_container(output: object):
    assert torch.equal(feature_matrix(output), features)


def test_feature_matrix_reads_a_transformers_model_output():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.SequenceClassifierOutput(loss=loss, logits=features, hidden_states=(torch.zeros(4, 3),))
    assert torch.equal(feature_matrix(output), features)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_samples_are_padded_with_zeros(layout: torch.layout):
    nested = torch.nested.nested_tensor([torch.ones(1, 2), torch.ones(3, 2)], layout=layout)
    assert feature_matrix(nested, "flatten").tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert feature_matrix(nested, "cls").tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (None, "NoneType"),
        ({"a": (None, "b")}, "dict"),
        (loss, "0-d"),
        (integers, "torch.int64"),
        (features.to_sparse(), "torch.sparse_coo"),
        (pack_sequence([torch.ones(3, 2), torch.ones(1, 2)]), "PackedSequence"),
    ],
)
def test_feature_matrix_names_what_it_cannot_read(output: object, found: str):
    with pytest.raises(TypeError, match=f"{found}.*layers"):
        feature_matrix(output)


def test_feature_matrix_refuses_an_unknown_choice_of_tokens():
    with pytest.raises(ValueError, match=r"tokens must be one of .*'average'"):
        feature_matrix(features, "average")  # type: ignore[arg-type]
