"""See `lightning_probes.testing.zoo.modules`."""

from lightning_probes.testing.zoo.modules import *  # noqa: F403
