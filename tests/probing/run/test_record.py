import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_probes.probing.run.record import Record, named, scalars
from lightning_probes.results import Curve, Flag, Heatmap, Scalar

NAN, INF = float("nan"), float("inf")


def add(record, step, *results, epoch=0, **extra):
    return record.add(step, epoch, named("fisher", results), extra)


class TestNamed:
    def test_keys_get_the_probes_name_and_flags_a_section(self):
        found = named("fisher", [Scalar("trace", 1.0), Curve("loss", [0, 1], [1, 2]), Flag("explosion", True)])
        assert {"fisher/trace", "fisher/loss", "fisher/flag/explosion"} <= found.keys()
        assert all(result.key == key for key, result in found.items())

    def test_every_probe_has_its_standing_flags(self):
        found = named("fisher", [])
        assert {key: flag.raised for key, flag in found.items()} == {
            "fisher/flag/nonfinite": False,
            "fisher/flag/not_converged": False,
        }

    @pytest.mark.parametrize(
        "broken",
        [
            Scalar("x", NAN),
            Scalar("x", -INF),
            Scalar("x", 1.0, standard_error=INF),
            Curve("x", [0, 1], [1, NAN]),
            Heatmap("x", [[INF]], ("a",), ("b",)),
        ],
    )
    def test_anything_not_finite_raises_the_flag_and_is_named(self, broken):
        flag = named("fisher", [Scalar("fine", 1.0), broken])["fisher/flag/nonfinite"]
        assert flag.raised
        assert flag.level == "warning"
        assert flag.message == "not finite: fisher/x"

    def test_a_probes_own_standing_flag_wins(self):
        flag = named("sharpness", [Flag("not_converged", True, message="why")])["sharpness/flag/not_converged"]
        assert flag.raised
        assert flag.message == "why"

    def test_results_are_consumed_once(self):
        assert len(named("fisher", iter([Scalar("a", 1.0), Scalar("b", 2.0)]))) == 4


class TestScalars:
    @given(st.floats(), st.floats() | st.none())
    @example(NAN, 1.0)
    @example(1.0, INF)
    def test_only_finite_numbers_are_left_and_an_error_never_stands_alone(self, value, error):
        found = scalars([Scalar("x", value, error)])
        assert all(map(math.isfinite, found.values()))
        assert ("x" in found) == math.isfinite(value)
        assert ("x_se" in found) == (error is not None and math.isfinite(value) and math.isfinite(error))

    def test_numbers_are_plain_floats(self):
        found = scalars([Scalar("a", np.float32(1.5)), Flag("b", True), Flag("c", np.bool_(False))])
        assert found == {"a": 1.5, "b": 1.0, "c": 0.0}
        assert all(type(value) is float for value in found.values())

    def test_pictures_are_no_scalars(self):
        assert scalars([Curve("x", [0], [1]), Heatmap("y", [[1]], ("a",), ("b",))]) == {}


class TestRecord:
    def test_history_holds_one_entry_an_event(self):
        record = Record()
        add(record, 0, Scalar("trace", 2.0, 0.5), epoch=0, seconds=0.1)
        add(record, 5, Scalar("trace", NAN), epoch=1)
        flags = {"fisher/flag/nonfinite": 0.0, "fisher/flag/not_converged": 0.0}
        first = {"step": 0, "epoch": 0, "fisher/trace": 2.0, "fisher/trace_se": 0.5, "seconds": 0.1, **flags}
        assert record.history == [first, {"step": 5, "epoch": 1, **flags, "fisher/flag/nonfinite": 1.0}]

    def test_results_are_the_latest_of_each_key(self):
        record = Record()
        add(record, 0, Scalar("trace", 1.0), Scalar("once", 3.0))
        add(record, 1, Scalar("trace", 2.0))
        assert record.results["fisher/trace"].value == 2.0
        assert record.results["fisher/once"].value == 3.0

    def test_trail_holds_every_picture_with_its_step(self):
        record = Record()
        for step in (0, 4):
            add(record, step, Curve("loss", [0, 1], [step, 1]), Heatmap("map", [[step]], ("a",), ("b",)))
        assert [(step, curve.y[0]) for step, curve in record.trail["fisher/loss"]] == [(0, 0), (4, 4)]
        assert [step for step, _ in record.trail["fisher/map"]] == [0, 4]

    def test_a_flag_is_announced_when_it_rises_and_again_after_it_fell(self):
        record = Record()
        raised = [True, True, False, True]
        risen = [[f.key for f in add(record, step, Flag("sharp", up))] for step, up in enumerate(raised)]
        assert risen == [["fisher/flag/sharp"], [], [], ["fisher/flag/sharp"]]

    def test_a_resumed_history_remembers_what_was_raised(self):
        record = Record()
        add(record, 0, Flag("sharp", True))
        resumed = Record(history=list(record.history))
        assert add(resumed, 1, Flag("sharp", True)) == []
        assert [flag.key for flag in add(resumed, 2, Scalar("trace", INF))] == ["fisher/flag/nonfinite"]

    def test_two_records_share_nothing(self):
        add(Record(), 0, Scalar("trace", 1.0))
        assert Record().history == []
        assert Record().trail == {}


@pytest.mark.parametrize(
    "results",
    [
        [Scalar("layer/a/b", 1.0), Scalar("layer/a/b", 2.0)],
        [Scalar("trace", 1.0, standard_error=0.1), Scalar("trace_se", 2.0)],
        [Scalar("flag/sharp", 1.0), Flag("sharp", True)],
        [Flag("nonfinite", False), Flag("nonfinite", True)],
        [Scalar("loss", 1.0), Curve("loss", [0, 1], [1, 2])],
    ],
)
def test_two_results_of_one_key_are_an_error(results):
    with pytest.raises(ValueError, match=r"two results of 'fisher' have the key '[a-z/_]+': give each"):
        named("fisher", results)
