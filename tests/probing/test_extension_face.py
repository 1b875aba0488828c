"""`lightning_probes.probing` is the one door for the author of a callback."""

from __future__ import annotations

import ast
from pathlib import Path

import lightning_probes
from lightning_probes import probing

PACKAGE = Path(lightning_probes.__file__).parent
BELOW = ("results.py", "functional", "metrics", "reporting", "probing")


def modules_of(file: Path) -> set[str]:
    """What a file imports, as dotted paths of modules."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return named | {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}


def test_every_name_of_the_face_is_there_once_and_in_order() -> None:
    assert list(probing.__all__) == sorted(set(probing.__all__))
    assert [name for name in probing.__all__ if not hasattr(probing, name)] == []


def test_nothing_below_the_face_imports_it() -> None:
    """So that importing a part never runs in a circle."""
    files = [
        file
        for part in BELOW
        for file in ([PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py"))
    ]
    through = [file.name for file in files if modules_of(file) & {"lightning_probes", "lightning_probes.probing"}]
    assert through == []


def test_what_a_module_uses_is_what_the_face_exports() -> None:
    """The same objects, so that `isinstance` holds whichever way one came."""
    from lightning_probes.probing.view import ModelView

    assert probing.ModelView is ModelView
    assert probing.Probe is lightning_probes.Probe
