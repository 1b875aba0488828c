"""Reading samples from a dataset without the dataset noticing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_probes.probing.copying import COPY, Copier, refuse
from lightning_probes.probing.seeding import seed_generator, seed_generators
from lightning_probes.probing.snapshot import Snapshot
"""
"""
