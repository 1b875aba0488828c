"""What the linter of imports does not see: circles of files within a room, packages that nobody thought to forbid."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lightning_probes

PACKAGE = Path(lightning_probes.__file__).parent


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in {path}"
            source = str(node.module)
            names = (f"{source}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else source for name in names)


def test_no_file_imports_itself_round_about() -> None:
    graph = {name: {other for other in imported(path) if other in MODULES} for name, path in MODULES.items()}
    assert len(graph) > 100
    TopologicalSorter(graph).prepare()  # raises, and names the circle


@pytest.mark.parametrize(("room", "packages"), [("functional", {"torch"}), ("results.py", {"numpy"})])
def test_the_lowest_floors_import_one_package_alone(room: str, packages: set[str]) -> None:
    files = [PACKAGE / room] if room.endswith(".py") else [*(PACKAGE / room).rglob("*.py")]
    found = {name.partition(".")[0] for path in files for name in imported(path)}
    assert found - set(sys.stdlib_module_names) - {"lightning_probes"} == packages
