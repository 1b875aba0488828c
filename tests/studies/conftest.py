"""A study that all tests can compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_probes.studies import InstabilityResult
from tests.studies.trained import study


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InstabilityResult]:
    """A study that was not interrupted: its folder and its result."""
    directory = tmp_path_factory.mktemp("whole") / "study"
    return directory, study(directory)
