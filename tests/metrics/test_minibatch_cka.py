from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from lightning_probes.functional.features.cka import linear_gram, u_center, unbiased_cka
from lightning_probes.metrics import CKA, MinibatchCKA


def layers(n: int, seed: int) -> list[Tensor]:
    """Features of three layers, of which the third has nothing to do with the other two."""
    generator = torch.Generator().manual_seed(seed)
    x, noise, unrelated = (torch.randn(n, 10, generator=generator, dtype=torch.float64) for _ in range(3))
    return [x, (x + noise)[:, :8], unrelated]


def grams(n: int, seed: int) -> Tensor:
    return torch.stack([linear_gram(features) for features in layers(n, seed)])


def accumulate(cka: MinibatchCKA, batches: dict[int, int]) -> MinibatchCKA:
    """Update with micro-batches seed -> size, each with a generator of its own."""
    for seed, n in batches.items():
        cka.update(grams(n, seed), generator=torch.Generator().manual_seed(seed))
    return cka


def hsic_by_formula(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """HSIC_1 as Song et al. 2012 write it, for raw Grams."""
    n = len(k)
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    product = k @ l
    square = product.trace() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * product.sum() / (n - 2)
    return (square / (n * (n - 3))).item()


def assert_same(found: CKA, expected: CKA, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(found.values, expected.values, rtol=rtol)
    np.testing.assert_allclose(found.null, expected.null, rtol=rtol)


def test_one_micro_batch_gives_unbiased_cka_of_each_pair():
    features = layers(20, seed=0)
    expected = [[unbiased_cka(x, y).item() for y in features] for x in features]
    values = accumulate(MinibatchCKA((3, 3)), {0: 20}).compute().values
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-10)


def test_ragged_micro_batches_are_weighted_by_size_and_summed_before_dividing():
    batches = {0: 20, 1: 20, 2: 5}
    sums = np.zeros((3, 3))
    for seed, n in batches.items():
        sums += n * np.array([[hsic_by_formula(k, l) for l in grams(n, seed)] for k in grams(n, seed)])  # noqa: E741
    expected = sums / np.sqrt(np.outer(sums.diagonal(), sums.diagonal()))
    values = accumulate(MinibatchCKA((3, 3)), batches).compute().values
    np.testing.assert_allclose(values, expected, rtol=1e-10)

    mean_of_ratios = np.mean([accumulate(MinibatchCKA((3, 3)), {s: n}).compute().values for s, n in batches.items()], 0)
    assert abs(values - mean_of_ratios).max() > 0.01


def test_many_small_micro_batches_reach_the_population_value():
    # Y = X + noise in ten dimensions: |I| / sqrt(|I| |2 I|) in squared Frobenius norms = 1 / 2
    cka = MinibatchCKA((1, 1))
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        x, noise = torch.randn(2, 10, 10, generator=generator, dtype=torch.float64)
        cka.update(linear_gram(x)[None], linear_gram(x + noise)[None])
    assert cka.compute().values.item() == pytest.approx(0.5, abs=0.02)


def test_columns_default_to_the_rows():
    both = MinibatchCKA((3, 3))
    both.update(grams(12, seed=0), grams(12, seed=0))
    assert_same(both.compute(), accumulate(MinibatchCKA((3, 3)), {0: 12}).compute())


def test_rows_and_columns_may_differ_in_number():
    cka = MinibatchCKA((3, 2))
    cka.update(grams(12, seed=0), grams(12, seed=1)[:2])
    expected = [[unbiased_cka(x, y).item() for y in layers(12, seed=1)[:2]] for x in layers(12, seed=0)]
    np.testing.assert_allclose(cka.compute().values, expected, rtol=1e-10)


def test_u_centred_grams_give_the_same_as_raw_ones():
    centred = MinibatchCKA((3, 3))
    centred.update(u_center(grams(12, seed=0)))
    assert_same(centred.compute(), accumulate(MinibatchCKA((3, 3)), {0: 12}).compute(), rtol=1e-10)


def test_batched_shape_compares_each_layer_with_its_own_counterpart():
    all_pairs, own = MinibatchCKA((3, 3), num_permutations=2), MinibatchCKA((3, 1, 1), num_permutations=2)
    for seed in range(3):
        current, initial = grams(12, seed), grams(12, seed + 10)
        all_pairs.update(current, initial, torch.Generator().manual_seed(seed))
        own.update(current[:, None], initial[:, None], torch.Generator().manual_seed(seed))
    expected, found = all_pairs.compute(), own.compute()
    np.testing.assert_allclose(found.values[:, 0, 0], expected.values.diagonal(), rtol=1e-10)
    np.testing.assert_allclose(found.null[:, :, 0, 0], expected.null.diagonal(axis1=1, axis2=2), rtol=1e-10)


def test_a_single_pair_keeps_its_shape():
    cka = MinibatchCKA((1, 1))
    cka.update(grams(12, seed=0)[:1])
    assert cka.compute().values.shape == (1, 1)


def test_constant_layer_is_nan_in_its_row_and_column_only():
    features = [*layers(12, seed=0)[:2], torch.full((12, 4), 0.1)]
    cka = MinibatchCKA((3, 3))
    cka.update(torch.stack([linear_gram(layer).double() for layer in features]))
    nan = np.isnan(cka.compute().values)
    assert nan[2].all()
    assert nan[:, 2].all()
    assert not nan[:2, :2].any()


def test_null_is_cka_with_shuffled_rows_summed_over_micro_batches():
    batches = {0: 20, 1: 20, 2: 5}
    null = accumulate(MinibatchCKA((3, 3), num_permutations=2), batches).compute().null
    generators = {seed: torch.Generator().manual_seed(seed) for seed in batches}
    for draw in null:
        shuffled = MinibatchCKA((3, 3))
        for seed, n in batches.items():
            order = torch.randperm(n, generator=generators[seed])
            columns = torch.stack([linear_gram(features[order]) for features in layers(n, seed)])
            shuffled.update(grams(n, seed), columns)
        np.testing.assert_allclose(draw, shuffled.compute().values, rtol=1e-10)


def test_null_covers_unrelated_layers_and_excludes_related_ones():
    cka = accumulate(MinibatchCKA((3, 3), num_permutations=200), dict.fromkeys(range(5), 20)).compute()
    low, high = np.percentile(cka.null, [2.5, 97.5], axis=0)
    assert low[0, 2] < cka.values[0, 2] < high[0, 2]
    assert cka.values[0, 1] > cka.null[:, 0, 1].max()
    assert (abs(cka.null.mean(0)) < 4 * cka.null.std(0) / 200**0.5).all()


def test_without_permutations_the_null_is_empty():
    assert accumulate(MinibatchCKA((3, 3)), {0: 12}).compute().null.shape == (0, 3, 3)


def test_permutations_need_a_generator():
    with pytest.raises(ValueError, match=r"num_permutations=2 needs .*generator="):
        MinibatchCKA((3, 3), num_permutations=2).update(grams(12, seed=0))


def test_grams_must_fit_the_shape():
    with pytest.raises(ValueError, match=r"shape \(3, 3\).*shape=\(4, 4\)"):
        MinibatchCKA((4, 4)).update(grams(12, seed=0))


def test_too_small_a_micro_batch_names_the_argument():
    with pytest.raises(ValueError, match="micro_batch_size"):
        MinibatchCKA((3, 3)).update(grams(3, seed=0))


def test_reset_forgets():
    cka = accumulate(MinibatchCKA((3, 3), num_permutations=2), {0: 12})
    cka.reset()
    expected = accumulate(MinibatchCKA((3, 3), num_permutations=2), {1: 12})
    assert_same(accumulate(cka, {1: 12}).compute(), expected.compute())


@pytest.mark.parametrize("duplicate", [lambda cka: pickle.loads(pickle.dumps(cka)), copy.deepcopy])
def test_a_copy_goes_on_accumulating(duplicate):
    cka = duplicate(accumulate(MinibatchCKA((3, 3), num_permutations=2), {0: 12}))
    expected = accumulate(MinibatchCKA((3, 3), num_permutations=2), {0: 12, 1: 16})
    assert_same(accumulate(cka, {1: 16}).compute(), expected.compute())


def test_sums_stay_in_float64_and_follow_the_metric_to_a_device():
    cka = accumulate(MinibatchCKA((3, 3), num_permutations=2), {0: 12})
    states = cka.half().to("meta").metric_state.values()
    assert {state.dtype for state in states} == {torch.float64}
    assert {state.device.type for state in states} == {"meta"}


ragged, lonely = {0: 20, 1: 20, 2: 5}, {0: 20}  # in the second, one process gets nothing


def measure_as_one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = []
    for batches in (ragged, lonely):
        share = {seed: batches[seed] for seed in list(batches)[rank::2]}
        found.append(accumulate(MinibatchCKA((3, 3), num_permutations=2), share).compute())
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow  # two processes import torch
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_give_what_one_gives(tmp_path: Path):
    expected = [accumulate(MinibatchCKA((3, 3), num_permutations=2), batches).compute() for batches in (ragged, lonely)]
    mp.spawn(measure_as_one_of_two, (tmp_path,), nprocs=2)
    for rank in range(2):
        found = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, rtol=1e-12)
