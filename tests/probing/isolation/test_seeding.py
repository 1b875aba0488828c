import random
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_probes.probing.isolation.seeding import derived_seed, isolated_rng, seed_generator, seed_generators


def draw():
    return (
        random.random(),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(1)),
        float(torch.randn(1)),
    )


def test_generators_go_on_as_if_nothing_had_been_drawn():
    seed_generators(1)
    expected = [draw(), draw()]
    seed_generators(1)
    first = draw()
    with isolated_rng():
        seed_generators(2)
        draw()
    assert [first, draw()] == expected


def test_generators_come_back_after_an_error_too():
    seed_generators(1)
    expected = draw()
    seed_generators(1)
    with pytest.raises(ZeroDivisionError), isolated_rng():
        draw()[0] / 0
    assert draw() == expected


def test_isolation_may_be_nested():
    with isolated_rng():
        seed_generators(1)
        with isolated_rng():
            inside = draw()
        assert draw() == inside


def test_nothing_is_left_behind_for_devices_that_are_not_in_use():
    queued = len(torch.cuda._queued_calls)
    with isolated_rng():
        seed_generators(0, 1)
    assert len(torch.cuda._queued_calls) == queued
    assert torch.cuda.is_initialized() is False or torch.cuda.is_available()


def test_every_generator_depends_on_every_part_of_the_key():
    with isolated_rng():
        drawn = []
        for key in [(0,), (0, 0), (0, 1), (1, 0), (1, 1)]:
            seed_generators(*key)
            drawn.append(draw())
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == len(drawn)


def test_neighbouring_keys_of_any_length_do_not_collide():
    keys = [key for length in (1, 2, 3) for key in product(range(12), repeat=length)]
    assert len({derived_seed(*key) for key in keys}) == len(keys)


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=4))
def test_seed_is_one_that_every_generator_takes(key):
    seed = derived_seed(*key)
    assert seed == derived_seed(*key)
    assert 0 <= seed < 2**32


def test_streams_of_neighbouring_batches_are_unrelated():
    draws = torch.stack(
        [torch.randn(2000, generator=torch.Generator().manual_seed(derived_seed(0, k))) for k in range(8)]
    )
    off_diagonal = torch.corrcoef(draws) - torch.eye(8)
    assert off_diagonal.abs().max() < 4.5 / 2000**0.5


@pytest.mark.parametrize(
    ("generator", "take"),
    [
        (torch.Generator(), lambda g: float(torch.rand(1, generator=g))),
        (np.random.PCG64(), lambda g: g.random_raw()),
        (np.random.Philox(), lambda g: g.random_raw()),
        (np.random.MT19937(), lambda g: g.random_raw()),
        (np.random.RandomState(), lambda g: g.rand()),
        (np.random.RandomState(np.random.PCG64()), lambda g: g.rand()),
        (random.Random(), lambda g: g.random()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_generator_object_can_be_seeded_in_place(generator, take):
    assert seed_generator(generator, 0, 3)
    first = take(generator)
    assert take(generator) != first
    assert seed_generator(generator, 0, 3)
    assert take(generator) == first
    seed_generator(generator, 0, 4)
    assert take(generator) != first


def test_what_is_no_generator_is_left_alone():
    assert not seed_generator([1], 0)
