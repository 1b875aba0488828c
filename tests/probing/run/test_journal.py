import json
import math
import os
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lightning_probes.probing.run.files import write_atomically
from lightning_probes.probing.run.journal import Journal, decoded, encoded
from lightning_probes.results import Curve, Flag, Heatmap, Scalar, Surface

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
# Whatever a layer or a message may hold: line ends of every kind, and halves of surrogate pairs.
TEXT = st.text(st.sampled_from('a/é"\\\n\r\x0b\x1c\x85\u2028\U0001f600\ud800'), max_size=6)
COUNTS = st.integers(0, 10**9)


@st.composite
def results(draw):
    kind = draw(st.sampled_from([Scalar, Curve, Heatmap, Surface, Flag]))
    if kind is Scalar:
        return Scalar(draw(TEXT), draw(FLOATS), draw(st.none() | FLOATS), draw(st.booleans()))
    if kind is Flag:
        numbers = (draw(st.none() | FLOATS) for _ in range(2))
        return Flag(draw(TEXT), draw(st.booleans()), *numbers, draw(TEXT), draw(st.sampled_from(["info", "warning"])))
    if kind is Curve:
        x, y, error = (draw(arrays(np.float64, 3, elements=FLOATS)) for _ in range(3))
        return Curve(draw(TEXT), x, y, draw(TEXT), draw(TEXT), draw(st.sampled_from([None, error])))
    if kind is Surface:
        x, y = (np.cumsum(draw(arrays(np.float64, n, elements=st.floats(0.1, 9.0)))) for n in (2, 3))
        path = draw(arrays(np.float64, st.tuples(st.integers(0, 3), st.just(2)), elements=FLOATS))
        values = draw(arrays(np.float64, (3, 2), elements=FLOATS))
        labels = draw(st.one_of(st.just(()), st.lists(TEXT, min_size=len(path), max_size=len(path))))
        with_path = draw(st.sampled_from([{}, {"path": path, "path_labels": labels}]))
        return Surface(draw(TEXT), x, y, values, x_label=draw(TEXT), y_label=draw(TEXT), **with_path)
    values = draw(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=3), elements=FLOATS))
    labels = [draw(st.lists(TEXT, min_size=n, max_size=n)) for n in values.shape]
    return Heatmap(draw(TEXT), values, *labels)


def events():
    extra = st.dictionaries(TEXT.map("probes/{}".format), FLOATS, max_size=2)
    by_key = st.lists(results(), max_size=3).map(lambda some: {result.key: result for result in some})
    return st.tuples(COUNTS, COUNTS, by_key, extra)


def same(one, other):
    """Equal to the sign of a zero, where any NaN equals any other."""
    if isinstance(one, (float, np.ndarray)):
        signs = [np.where(np.isnan(number), 0.0, np.copysign(1.0, number)) for number in (one, other)]
        return np.array_equal(one, other, equal_nan=True) and np.array_equal(*signs)
    return one == other and type(one) is type(other)


def assert_same_event(found, expected):
    assert found[:2] == expected[:2]
    assert list(found[2]) == list(expected[2])
    for result, other in zip(found[2].values(), expected[2].values(), strict=True):
        assert type(result) is type(other)
        assert all(same(getattr(result, f.name), getattr(other, f.name)) for f in fields(other))
    assert found[3].keys() == expected[3].keys()
    assert all(same(found[3][key], value) for key, value in expected[3].items())


@given(events())
def test_an_event_is_one_line_from_which_it_is_read_back_exactly(event):
    line = encoded(*event)
    assert len(line.splitlines()) == 1
    assert_same_event(decoded(line), event)


def test_numbers_of_numpy_are_read_back_as_numbers():
    event = {"a": Scalar("a", np.float32(0.1), np.float64(2)), "b": Flag("b", np.bool_(True), np.int64(3))}
    _, _, found, _ = decoded(encoded(0, 0, event, {}))
    assert found["a"] == Scalar("a", float(np.float32(0.1)), 2.0)
    assert found["b"].raised is True


def test_lines_of_a_version_that_knew_no_details_are_read():
    line = (
        '{"step": 3, "epoch": 0, "fisher/seconds": 0.5, "results": ['
        '{"kind": "Scalar", "key": "fisher/trace", "value": 2.5, "standard_error": null}, '
        '{"kind": "Heatmap", "key": "fisher/m", "values": [], "row_labels": [], "column_labels": ["a"]}]}'
    )
    step, epoch, results, extra = decoded(line)
    assert (step, epoch, extra) == (3, 0, {"fisher/seconds": 0.5})
    assert results["fisher/trace"] == Scalar("fisher/trace", 2.5)
    assert results["fisher/m"].values.shape == (0, 1)


ACTIONS = st.lists(st.sampled_from(["add", "flush", "state"]), max_size=12)


@given(ACTIONS, st.data())
def test_from_any_state_one_reads_what_was_added_before_it_and_goes_on_from_there(actions, data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "deep", "fisher.jsonl")
        journal, added, states = Journal(path), [], []
        for action in [*actions, "state"]:
            if action == "add":
                added.append(encoded(len(added), 0, {}, {"x": data.draw(FLOATS)}))
                journal.add(added[-1])
            elif action == "flush":
                journal.flush()
            else:
                states.append((json.loads(json.dumps(journal.state_dict())), len(added)))
        assert [Journal.read(state) for state, _ in states] == [(path, added[:n]) for _, n in states]

        state, known = data.draw(st.sampled_from(states))
        _, lines = Journal.read(state)
        journal.release()
        whole = path.stat().st_size == state["offset"]
        resumed = Journal(path, lines, are_written=whole)
        again = [*lines, encoded(known, 1, {}, {})]
        resumed.add(again[-1])
        file = path if whole else path.with_name("fisher-1.jsonl")
        assert Journal.read(resumed.state_dict()) == (file, again)
        assert file.read_text().splitlines() == again
        if not whole:
            assert [Journal.read(state) for state, _ in states] == [(path, added[:n]) for _, n in states]


@given(st.lists(TEXT, min_size=1, max_size=4), st.data())
def test_any_byte_that_differs_is_noticed(texts, data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "fisher.jsonl")
        journal = Journal(path, [json.dumps(text) for text in texts])
        state, content = journal.state_dict(), bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        assert Journal.read(state) == (None, None)
        path.write_bytes(content[:at])
        assert Journal.read(state) == (None, None)


def test_without_a_path_there_is_no_file_and_nothing_to_read():
    journal = Journal()
    journal.add("{}")
    assert Journal.read(journal.state_dict()) == (None, None)
    assert os.listdir() == []


def test_nothing_is_written_until_it_is_flushed(tmp_path):
    journal = Journal(tmp_path / "fisher.jsonl")
    journal.add("{}")
    assert list(tmp_path.iterdir()) == []
    journal.flush()
    assert (tmp_path / "fisher.jsonl").read_text() == "{}\n"


def test_of_several_files_the_one_that_holds_what_it_held_is_read(tmp_path):
    gone, moved = tmp_path / "old" / "probes" / "fisher.jsonl", tmp_path / "new" / "probes" / "fisher.jsonl"
    state = Journal(gone, ["1", "2"]).state_dict()
    write_atomically(moved, gone.read_bytes() + b"3\n")
    gone.write_text("another run's\n")
    assert Journal.read(state, tmp_path / "new" / "checkpoints" / "last.ckpt") == (moved, ["1", "2"])


def test_json_without_extras_would_not_hold_these_numbers():
    """Which is why the lines are read by Python, and by what else knows NaN and Infinity."""
    line = encoded(0, 0, {}, {"x": math.nan, "y": -math.inf})
    assert '"x": NaN, "y": -Infinity' in line


def test_a_line_that_was_written_in_part_is_written_anew(tmp_path):
    journal = Journal(tmp_path / "fisher.jsonl", ["1"])
    journal.flush()
    with journal.path.open("ab") as file:
        file.write(b"222")  # and then the disk was full
    journal.add("22222")
    assert Journal.read(journal.state_dict()) == (journal.path, ["1", "22222"])
    assert journal.path.read_text() == "1\n22222\n"


def test_a_path_of_another_system_is_found_beside_the_checkpoint(tmp_path):
    state = Journal(tmp_path / "fisher.jsonl", ["1"]).state_dict() | {"path": "C:\\runs\\probes\\fisher.jsonl"}
    assert Journal.read(state, tmp_path / "last.ckpt") == (tmp_path / "fisher.jsonl", ["1"])
