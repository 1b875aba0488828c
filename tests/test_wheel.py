"""What is built and installed holds every file of the package."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import lightning_probes

PACKAGE = Path(lightning_probes.__file__).parent
FILES = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_every_folder_of_the_package_is_a_package_itself() -> None:
    assert {path.parent for path in FILES if path.suffix == ".py"} == {
        path.parent for path in FILES if path.name == "__init__.py"
    }


@pytest.mark.skipif(shutil.which("git") is None or not (PACKAGE.parent / ".git").exists(), reason="no git checkout")
def test_no_file_of_the_package_is_ignored_and_so_left_out_of_the_wheel() -> None:
    """The wheel leaves out what `.gitignore` names, also what git has all the same, such as a folder called wandb."""
    names = "\n".join(str(path.relative_to(PACKAGE.parent)) for path in FILES)
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    found = subprocess.run(command, cwd=PACKAGE.parent, input=names, capture_output=True, text=True, check=False)
    assert found.stdout.split() == []
    assert found.returncode == 1, found.stderr
