"""Random number generators of a process: restored after a measurement, and seeded for repeatable passes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore the python, numpy and torch generators (CPU and every device in use) on exit, also after an error.

    Example:
        >>> before = torch.get_rng_state()
        >>> with isolated_rng():
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # An unused device has no generator to protect, and asking for its state would initialise the device.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def seed_generators(*key: int) -> None:
    """Seed every generator that `isolated_rng` restores, from a tuple of integers.

    Example:
        >>> with isolated_rng():
        ...     seed_generators(0, 3)
        ...     first = torch.rand(1)
        ...     seed_generators(0, 3)
        ...     bool(first == torch.rand(1))
        True
    """
    seed = derived_seed(*key)
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed would also queue a seed for devices that are not initialised yet, which is never undone.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for generator in torch.cuda.default_generators:
            generator.manual_seed(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def seed_generator(generator: Any, *key: int) -> bool:
    """Seed a generator object of torch, numpy or python from a tuple of integers; False if it is not a generator.

    Example:
        >>> generator = np.random.default_rng()
        >>> seed_generator(generator.bit_generator, 0, 3)
        True
    """
    seed = derived_seed(*key)
    if isinstance(generator, np.random.Generator):
        generator = generator.bit_generator
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = type(generator)(seed).state
    elif isinstance(generator, (random.Random, np.random.RandomState)):
        bits: Any = getattr(generator, "_bit_generator", None)
        if bits is None or isinstance(bits, np.random.MT19937):
            generator.seed(seed)
        else:  # the old interface can't seed a generator of another type
            bits.state = type(bits)(seed).state
    else:
        return False
    return True


@lru_cache(maxsize=1024)  # called once per pass, with few different keys
def derived_seed(*key: int) -> int:
    """A 32-bit seed from a tuple of non-negative integers, so that neighbouring keys give unrelated streams.

    Example:
        >>> len({derived_seed(0), derived_seed(0, 0), derived_seed(0, 1), derived_seed(1, 0)})
        4
    """
    # The length is included, because numpy pads entropy with zeros.
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1)[0])
