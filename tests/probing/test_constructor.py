"""Shared arguments are declared once, and everybody who looks at a constructor sees each of them."""

from __future__ import annotations

import inspect
import pydoc
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.utils.data import TensorDataset
from typing_extensions import Unpack

from lightning_probes import (
    AtFitEnd,
    EveryNSteps,
    FisherTrace,
    InitInterpolation,
    LayerCKA,
    LogSpacedSteps,
    LossPlane,
    Probe,
    Sharpness,
)
from lightning_probes.probing import LossArguments, Monitor, ProbeArguments

SHARED = (
    "schedule", "data", "num_samples", "micro_batch_size", "loss_fn", "predict_fn", "init_state", "on_flag", "on_error",
    "name", "seed",
)  # fmt: skip
LEFT_OUT: dict[type[Probe], set[str]] = {
    FisherTrace: {"init_state"},
    InitInterpolation: set(),
    LayerCKA: set(),
    LossPlane: {"predict_fn", "init_state"},
    Sharpness: {"predict_fn", "init_state"},
}
OWN_DEFAULTS: dict[type[Probe], dict[str, Any]] = {
    FisherTrace: {"name": "fisher", "schedule": LogSpacedSteps(12), "data": "train"},
    InitInterpolation: {"name": "interpolation", "data": ("train", "val")},
    LayerCKA: {"name": "cka", "schedule": (LogSpacedSteps(4), AtFitEnd()), "data": None},
    LossPlane: {"name": "plane", "schedule": AtFitEnd(), "data": "train", "num_samples": 256},
    Sharpness: {"name": "sharpness", "schedule": (LogSpacedSteps(4), AtFitEnd()), "data": "train"},
}
DEFAULTS = {
    "num_samples": 512, "micro_batch_size": None, "loss_fn": None, "predict_fn": None, "init_state": None,
    "on_flag": "log", "on_error": "raise", "seed": 0,
}  # fmt: skip


class Mine(Probe):
    """A probe of a stranger, without a constructor."""

    defaults = ProbeArguments(schedule=EveryNSteps(3), name="mine", num_samples=8)

    def measure(self, view: Any) -> Any:
        return []


class Loss(Mine):
    """With an argument of its own, and fewer shared ones."""

    def __init__(self, *, factor: float = 2.0, **shared: Unpack[LossArguments]) -> None:
        super().__init__(**shared)
        self.factor = factor


class Named(Sharpness):
    defaults = ProbeArguments(name="other", micro_batch_size=4)


class Passing(Sharpness):
    def __init__(self, *, more: int = 1, **whatever: Any) -> None:
        super().__init__(**whatever)
        self.more = more


class Explicit(Probe):
    def __init__(self, factor: float, name: str = "explicit") -> None:
        super().__init__(name=name, schedule=EveryNSteps(1), num_samples=4)
        self.factor = factor

    def measure(self, view: Any) -> Any:
        return []


class BelowExplicit(Explicit):
    pass


class Mixin:
    def __init__(self, *, mixed: int = 1, **whatever: Any) -> None:
        super().__init__(**whatever)
        self.mixed = mixed


class WithMixin(Mixin, Sharpness):
    pass


def names_of(kind: type) -> list[str]:
    return [*inspect.signature(kind).parameters]


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_signature_has_each_shared_argument_with_the_default_of_that_probe(kind: type[Probe]) -> None:
    parameters = inspect.signature(kind).parameters
    shared = [name for name in SHARED if name not in LEFT_OUT[kind]]
    assert [name for name in parameters if name in SHARED] == shared
    for name, default in {**DEFAULTS, **OWN_DEFAULTS[kind]}.items():
        if name in shared:
            assert parameters[name].default == default
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    assert getattr(kind(), "name") == OWN_DEFAULTS[kind]["name"]  # noqa: B009


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_help_shows_what_is_in_the_signature(kind: type[Probe]) -> None:
    text = pydoc.plain(pydoc.render_doc(kind))
    constructors = [line for line in text.splitlines() if f"{kind.__name__}(*, " in line or "__init__(self" in line]
    assert len(constructors) == 2
    for line in constructors:
        assert "on_flag: Literal['log', 'alert', 'stop'] = 'log'" in line
        assert f"name: str = {OWN_DEFAULTS[kind]['name']!r}" in line
        assert "AtFitEnd()" in line or "LogSpacedSteps(per_decade=12, stop=None)" in line
        assert "class_path" not in line


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in LEFT_OUT.items() for name in sorted(names)])
def test_shared_argument_that_a_probe_does_not_take_is_refused_with_those_it_takes(kind: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__} takes no {name}=: it takes .*loss_fn.*seed"):
        kind(**{name: None})


def test_misspelt_argument_is_answered_with_the_right_one() -> None:
    with pytest.raises(TypeError, match="FisherTrace takes no lables=: did you mean labels="):
        FisherTrace(lables="exact")  # type: ignore[call-arg]


def test_a_subclass_needs_only_class_attributes_and_no_constructor() -> None:
    assert [*names_of(Mine)] == [*SHARED]
    probe = Mine(seed=3)
    assert (probe.name, probe.num_samples, probe.schedule, probe.seed) == ("mine", 8, EveryNSteps(3), 3)
    assert Mine(name="again").name == "again"


def test_a_constructor_says_by_its_type_which_shared_arguments_it_takes() -> None:
    assert names_of(Loss) == ["factor", *[name for name in SHARED if name not in ("predict_fn", "init_state")]]
    assert (Loss(factor=3.0, num_samples=2).num_samples, Loss().num_samples) == (2, 8)
    with pytest.raises(TypeError, match="Loss takes no predict_fn="):
        Loss(predict_fn=None)  # type: ignore[call-arg]


def test_a_subclass_may_change_defaults_alone() -> None:
    assert names_of(Named) == names_of(Sharpness)
    assert inspect.signature(Named).parameters["micro_batch_size"].default == 4
    assert (Named().name, Named().micro_batch_size, Sharpness().name) == ("other", 4, "sharpness")


class LittleData:
    """No probe itself: defaults for several probes."""

    defaults: ClassVar[Any] = {"num_samples": 7, "schedule": EveryNSteps(9)}


class Mixed(LittleData, Named):
    """Two classes with defaults above it."""


def test_the_signature_has_the_defaults_of_every_class_above() -> None:
    parameters = inspect.signature(Mixed).parameters
    assert (parameters["num_samples"].default, parameters["micro_batch_size"].default) == (7, 4)
    assert parameters["schedule"].default == EveryNSteps(9)
    assert (Mixed().num_samples, Mixed().micro_batch_size, Mixed().schedule) == (7, 4, EveryNSteps(9))


def test_untyped_keywords_stand_for_what_the_class_above_takes() -> None:
    assert names_of(Passing) == ["more", *names_of(Sharpness)]
    assert Passing(more=2, rho=0.3).rho == 0.3
    with pytest.raises(TypeError, match="Passing takes no predict_fn="):
        Passing(predict_fn=None)
    assert names_of(WithMixin) == ["mixed", *names_of(Sharpness)]
    assert WithMixin(mixed=4, rho=0.3).mixed == 4


def test_a_constructor_that_names_all_it_takes_stays_as_it_is() -> None:
    for kind in (Explicit, BelowExplicit):
        assert str(inspect.signature(kind)).startswith("(factor: float, name: str = 'explicit')")
        assert (kind(2.0).factor, kind(2.0, "other").name) == (2.0, "other")


def test_a_probe_without_name_or_schedule_says_how_to_get_one() -> None:
    class Nameless(Probe):
        def measure(self, view: Any) -> Any:
            return []

    with pytest.raises(TypeError, match=r"Nameless needs schedule=: pass it, or put it into Nameless\.defaults"):
        Nameless(name="mine")
    with pytest.raises(TypeError, match="Nameless needs name="):
        Nameless(schedule=AtFitEnd())


def test_a_monitor_takes_no_data() -> None:
    class Watching(Monitor):
        defaults = ProbeArguments(schedule=EveryNSteps(3), name="watching")

        def before_step(self, moment: Any) -> Any:
            return []

    assert names_of(Watching) == ["schedule", "on_flag", "on_error", "name", "seed"]
    with pytest.raises(TypeError, match="Watching takes no num_samples="):
        Watching(num_samples=3)


class NoMeasure(Sharpness):
    measure = Probe.measure


@pytest.mark.parametrize("kind", [Probe, NoMeasure])
def test_what_can_not_measure_can_not_be_made(kind: Any) -> None:
    with pytest.raises(TypeError, match=f"abstract class {kind.__name__}.*measure"):
        kind(name="a", schedule=AtFitEnd())


def mean_square(module: Any, batch: Any) -> Any:
    return module(batch[0]).square().mean()


def test_repr_is_the_call_that_makes_such_a_probe() -> None:
    probe = InitInterpolation(num_alphas=3, data=("train", TensorDataset(torch.ones(2))), loss_fn=mean_square)
    assert repr(probe) == (
        "InitInterpolation(num_alphas=3, batch_norm='recalibrate', tolerance=0.001, linearized=False, "
        "schedule=(AtCheckpoints(min_growth=1.5), AtFitEnd()), data=('train', <TensorDataset>), num_samples=512, "
        "loss_fn=tests.probing.test_constructor.mean_square, on_flag='log', on_error='raise', name='interpolation', "
        "seed=0)"
    )
    assert eval(repr(Sharpness(rho=0.3))).rho == 0.3


def test_repr_of_what_is_large_is_short() -> None:
    start = {f"layer{index}": torch.ones(1000) for index in range(1000)}
    assert "init_state=<dict of 1000 entries>" in repr(LayerCKA(init_state=start))
    assert len(repr(LayerCKA(init_state=start, layers=["a" * 10_000]))) < 500


GIVEN = """
from torch.utils.data import DataLoader
from lightning_probes import EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Sharpness
from lightning_probes.probing import LossArguments, Probe, ProbeArguments
"""
RIGHT = [
    "Sharpness(rho=0.1, num_samples=3, schedule=(EveryNSteps(1),), loss_fn=lambda module, batch: module(batch))",
    "FisherTrace(predict_fn=None, data='val')",
    "LayerCKA(data=None, layers='net.*', init_state='a.ckpt')",
    "InitInterpolation(data=('train', 'val'), layers=['net.*'])",
    "InitInterpolation(data={'train': 'train', 'shifted': 'val'})",
]
WRONG = [
    "Sharpness(predict_fn=None)",
    "Sharpness(init_state='a.ckpt')",
    "FisherTrace(data=None)",
    "FisherTrace(data=('train', 'val'))",
    "InitInterpolation(data={'train': 3})",
    "FisherTrace(num_samples='3')",
    "FisherTrace(lables='exact')",
    "LayerCKA(on_flag='shout')",
    "InitInterpolation(schedule=10)",
    "ProbeArguments(num_sampels=3)",
]


@pytest.mark.slow
def test_a_type_checker_accepts_and_refuses_by_name_and_type(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    file = tmp_path / "given.py"
    file.write_text("\n".join([GIVEN.strip(), *RIGHT, *WRONG]))
    root = Path(__file__).parents[2]
    found, _, _ = api.run(["--strict", f"--config-file={root / 'pyproject.toml'}", "--no-pretty", str(file)])
    lines = {int(line) for line in re.findall(r"given\.py:(\d+): error:", found)}
    first = len(GIVEN.strip().splitlines()) + len(RIGHT) + 1
    assert lines == {*range(first, first + len(WRONG))}, found
