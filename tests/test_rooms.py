"""What a room knows: no callback below the callbacks, and a Trainer only where runs are."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch import Callback

import lightning_probes

PACKAGE = Path(lightning_probes.__file__).parent
ROOMS = ("probing", "reporting", "metrics", "functional")
FILES = [PACKAGE / "results.py", *(path for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py")))]
CALLBACKS = {
    name: kind
    for name in lightning_probes.__all__
    if inspect.isclass(kind := getattr(lightning_probes, name))
    and issubclass(kind, Callback)
    and kind.__module__.startswith("lightning_probes.callbacks.")
}
PREFIXES = {
    str(parameter.default)
    for kind in CALLBACKS.values()
    if (parameter := inspect.signature(kind).parameters.get("name")) is not None
}
IN_TEXT = re.compile(rf"\b({'|'.join(CALLBACKS)})\b|^({'|'.join(PREFIXES)})(/|$)")


def known(source: str) -> Iterator[str]:
    """What a file knows of callbacks: names, texts and imports. Docstrings may have examples."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    docstrings = {id(node.body[0].value) for node in nodes if isinstance(node.body[0], ast.Expr)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            modules = [f"{getattr(node, 'module', None) or ''}.{name}".strip(".") for name in names]
            yield from (module for module in modules if module.startswith("lightning_probes.callbacks"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from IN_TEXT.findall(node.value)
        yield from (name for name in names if name in CALLBACKS)


def test_the_callbacks_and_their_prefixes_are_found() -> None:
    assert {"FisherTrace", "InitInterpolation", "LayerCKA", "Sharpness", "HTMLReport"} <= set(CALLBACKS)
    assert {"fisher", "interpolation", "cka", "sharpness"} <= PREFIXES


@pytest.mark.parametrize(
    "line",
    [
        "from lightning_probes.callbacks.features import layer_cka",
        "from lightning_probes import callbacks",
        "import lightning_probes.callbacks",
        "from lightning_probes import FisherTrace",
        "isinstance(probe, Sharpness)",
        "kinds.FisherTrace",
        "hidden = ['fisher/loss']",
        "name == 'cka'",
        "raise ValueError('pass another likelihood= to FisherTrace')",
    ],
)
def test_a_line_that_knows_a_callback_is_noticed(line: str) -> None:
    assert list(known(line))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_below_the_callbacks_knows_one(path: Path) -> None:
    assert list(known(path.read_text(encoding="utf-8"))) == []


# A hook is given a Trainer, and passes it on. The twin has a view of one, and the shared tester trains.
KNOWS_A_TRAINER = ("probing/run/", "probing/isolation/", "testing/")


def asked_of_a_trainer(source: str) -> Iterator[str]:
    """What a file reads or sets of a Trainer, or that it makes one."""
    for node in ast.walk(ast.parse(source)):
        owner = node.value if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in ("getattr", "setattr", "vars"):
            owner = node.args[0]
        made = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Trainer"
        if made or (owner is not None and ast.unparse(owner).rpartition(".")[2] in ("trainer", "_trainer")):
            yield ast.unparse(node)


@pytest.mark.parametrize(
    "line",
    [
        "trainer.fit(module)",
        "project.trainer.callbacks",
        "getattr(trainer, 'loggers')",
        "vars(module._trainer)",
        "L.Trainer(devices=1)",
    ],
)
def test_a_line_that_asks_something_of_a_trainer_is_noticed(line: str) -> None:
    assert list(asked_of_a_trainer(line))


OTHERS = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.relative_to(PACKAGE).as_posix().startswith(KNOWS_A_TRAINER)
]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_what_knows_runs_asks_something_of_a_trainer(path: Path) -> None:
    assert list(asked_of_a_trainer(path.read_text(encoding="utf-8"))) == []
