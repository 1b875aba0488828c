"""`lightning_probes.testing`."""
