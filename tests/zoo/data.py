"""See `lightning_probes.testing.zoo.data`."""

from lightning_probes.testing.zoo.data import *  # noqa: F403
