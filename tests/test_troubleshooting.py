"""The troubleshooting page has every sentence that the package can say, and none that it can't."""

from __future__ import annotations

import ast
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lightning_probes
from lightning_probes import EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Sharpness
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.tester import fit

PACKAGE = Path(lightning_probes.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
VARIES = "…"

# -- what the package says ---------------------------------------------------------------------------------------------

# Where a call has the sentence: what is raised (or made to be raised), what is said or warned of, flags. Lines of level
# debug are for those who develop the package.
ERROR = re.compile(r"(Error|Exception|Interrupt)$")
SPOKEN = re.compile(r"^(rank_zero_)?(info|warn|warning|error|critical)$")


def said_by(source: str) -> set[str]:
    """The constant parts of every sentence in a module, `…` for what varies."""
    tree = ast.parse(source)
    assigned = [
        (ast.unparse(target), node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    texts: list[str] = []
    for argument in filter(None, map(_sentence, ast.walk(tree))):
        texts += _texts(argument)
        if isinstance(argument, (ast.Name, ast.Attribute)):  # a variable: all that it is ever set to
            texts += [t for name, value in assigned if name == ast.unparse(argument) for t in _texts(value)]
    return {normal(text) for text in texts if _has_words(text)}


def _sentence(node: ast.AST) -> ast.expr | None:
    """The argument of a call that is a sentence, if it has any."""
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func).rpartition(".")[2]
    if name == "Flag":
        by_name = [keyword.value for keyword in node.keywords if keyword.arg == "message"]
        return next(iter([*node.args[4:5], *by_name]), None)
    return next(iter(node.args), None) if ERROR.search(name) or SPOKEN.search(name) else None


def _texts(node: ast.AST) -> list[str]:
    """The texts that an expression is made of; those that are added up as one."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else VARIES for part in node.values)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        pairs = itertools.product(_texts(node.left) or [VARIES], _texts(node.right) or [VARIES])
        return [left + right for left, right in pairs]
    return [text for child in ast.iter_child_nodes(node) for text in _texts(child)]


def _has_words(text: str) -> bool:
    """Whether a text says something by itself: f"{name}: {error}" passes another's sentence on."""
    return re.search("[a-z]{2}", text) is not None


def normal(text: str) -> str:
    return re.sub(rf"{VARIES}(\s*{VARIES})*", VARIES, " ".join(text.split()))


SAID = {
    sentence: path.relative_to(PACKAGE).as_posix()
    for path in sorted(PACKAGE.rglob("*.py"))
    for sentence in said_by(path.read_text())
}

# -- what the page has -------------------------------------------------------------------------------------------------

# An entry is code that fills a bold line, or the first cell of a row; code that has backticks itself stands in two.
ENTRY = re.compile(r"^(?:\*\*(?=`.*`\*\*$)|\| (?=`.*` \|))(`+)(?P<sentence>.+?)\1(?:\*\*$| \|)", re.MULTILINE)


def entries_of(page: str) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    return [normal(match["sentence"]) for match in ENTRY.finditer(prose)]


ENTRIES = entries_of(PAGE.read_text())


def entry_for(message: str) -> list[str]:
    """The entries that a message fits, with or without the name of who says it before."""
    said = normal(message)
    patterns = {entry: ".*?".join(map(re.escape, entry.split(VARIES))) for entry in ENTRIES}
    return [entry for entry, pattern in patterns.items() if re.fullmatch(rf"([\w/ '.]+: )?{pattern}", said)]


def test_every_sentence_of_the_package_has_an_entry() -> None:
    assert len(SAID) > 100
    assert {sentence: where for sentence, where in SAID.items() if sentence not in ENTRIES} == {}


def test_every_entry_is_a_sentence_of_the_package() -> None:
    assert [entry for entry in ENTRIES if entry not in SAID] == []


def test_nothing_is_raised_that_the_collection_does_not_see() -> None:
    """As by an exception whose name does not tell that it is one, or through a function that is given the sentence."""
    nodes = [node for path in sorted(PACKAGE.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text()))]
    calls = [node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    unseen = [ast.unparse(call) for call in calls if _sentence(call) is None and any(map(_has_words, _texts(call)))]
    assert len(calls) > 60
    assert unseen == []


def test_no_sentence_has_two_entries() -> None:
    assert len(ENTRIES) == len(set(ENTRIES))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("raise ValueError(f'{a!r} is {b}: '\n 'pass c=')", "… is …: pass c="),
        ("raise ValueError('a is ' + found + ': pass c=')", "a is …: pass c="),
        ("def refusal(): return module.SomeError('no such luck')", "no such luck"),
        ("raise KeyboardInterrupt('no such luck') if x else y", "no such luck"),
        ("self.why = '; '.join(f'{n} failed' for n in x)\nraise SomeError(self.why)", "… failed"),
        ("self.say.warn('no such luck')", "no such luck"),
        ("warnings.warn('no such luck')", "no such luck"),
        ("message = f'{x} is large'\nFlag('large', True, x, 1.0, message)", "… is large"),
        ("Flag('large', True, message='is large' if large else '')", "is large"),
    ],
)
def test_sentences_are_found_wherever_they_are_written(source: str, sentence: str) -> None:
    assert said_by(source) == {sentence}


# -- messages as they are met ------------------------------------------------------------------------------------------


class Once(IterableDataset[Any]):
    def __init__(self) -> None:
        self.samples = (sample for sample in labelled(4))

    def __iter__(self) -> Iterator[Any]:
        return self.samples


class Counts(Supervised):
    """Its loss depends on a count outside the module."""

    def loss_of(self, batch: Any) -> torch.Tensor:
        return super().loss_of(batch) * (1 + next(CALLS))


CALLS = itertools.count()


def run(
    probe: Any,
    module: Callable[[nn.Module], Supervised] = Supervised,
    data: Dataset[Any] | None = None,
    **arguments: Any,
) -> Callable[[], Any]:
    train = loader(labelled(4)) if data is None else DataLoader(data, batch_size=8)
    return lambda: fit(lambda: Fit(module(mlp()), train), probe if isinstance(probe, list) else [probe], **arguments)


class Outgrows(Supervised):
    """Has no room for more than no sample, but in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


MET: dict[str, tuple[Callable[[], Any], str]] = {
    "an argument out of range": (lambda: EveryNSteps(0), "must be"),
    "two probes of one name": (run([Sharpness(), Sharpness()]), "two probes are called"),
    "data that can be read once": (run(Sharpness(), data=Once()), "can't be read without taking samples away"),
    "a loss that differs": (run(Sharpness(num_samples=8), Counts), "differs between two identical passes"),
    "targets of no known likelihood": (
        run(FisherTrace(num_samples=8, predict_fn=lambda module, batch: (module(batch[0]), batch[1].float()))),
        "only for integer targets",
    ),
    "too few samples": (run(LayerCKA(num_samples=3)), "samples in every micro-batch, but one has"),
    "layers that are not there": (run(LayerCKA(num_samples=8, layers=["conv"])), "matches nothing"),
    "a state of another model": (
        run(InitInterpolation(num_samples=8, init_state=mlp(5).state_dict())),
        "does not belong to this module",
    ),
    "a layer without a shape": (
        run(LayerCKA(num_samples=8), lambda _: Supervised(nn.Sequential(nn.LazyLinear(3)), lr=0.0)),
        "is not initialised",
    ),
    "a file that is none of PyTorch": (
        run(InitInterpolation(num_samples=8, init_state=PAGE)),
        "can't be read as a file of torch.save",
    ),
    "out of memory": (run(Sharpness(num_samples=8), Outgrows), "ran out of memory on micro-batches"),
}


@pytest.mark.parametrize("what", MET)
def test_error_as_it_is_met_leads_to_its_entry(what: str) -> None:
    provoke, words = MET[what]
    with pytest.raises(Exception, match=re.escape(words)) as caught:
        provoke()
    [entry] = entry_for(str(caught.value))
    assert words in entry


def test_warning_as_it_is_met_leads_to_its_entry() -> None:
    with pytest.warns(UserWarning, match="failed and was left out") as said:
        run(Sharpness(num_samples=8, on_error="warn"), Counts)()
    [message] = [str(each.message) for each in said if "left out" in str(each.message)]
    assert entry_for(message) == ["failed and was left out: …"]


# -- the page's own code -----------------------------------------------------------------------------------------------


def test_code_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "level", logging.INFO)  # put back
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    module = Supervised(mlp())
    names: dict[str, Any] = {name: getattr(lightning_probes, name) for name in lightning_probes.__all__}
    names |= {"torch": torch, "nn": nn, "F": F, "EarlyStopping": EarlyStopping}
    names |= {"model": module, "self": module, "loader": loader(labelled(4))}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) > 10
