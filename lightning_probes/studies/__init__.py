"""Studies: functions that drive several trainings, and can be continued after they were interrupted."""

from lightning_probes.studies.instability import instability
from lightning_probes.studies.instability_result import InstabilityResult

__all__ = ["InstabilityResult", "instability"]
