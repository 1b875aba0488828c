"""Studies: functions that drive or compare several trainings. A training that was interrupted can be continued."""

from lightning_probes.studies.instability import instability
from lightning_probes.studies.instability_result import InstabilityResult
from lightning_probes.studies.portfolio import Portfolio, portfolio

__all__ = ["InstabilityResult", "Portfolio", "instability", "portfolio"]
