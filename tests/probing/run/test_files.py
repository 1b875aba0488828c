import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lightning_probes.probing.run import files
from lightning_probes.probing.run.files import created, opened_alone, places, write_at, write_atomically
from lightning_probes.probing.run.journal import Journal


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_new_file_has_the_path_itself_or_a_numbered_one(tmp_path):
    found = []
    for _ in range(3):
        path, file = created(tmp_path / "deep" / "fisher.jsonl")
        file.close()
        found.append(path.name)
    assert found == ["fisher.jsonl", "fisher-1.jsonl", "fisher-2.jsonl"]


def test_a_file_is_looked_for_where_it_was_and_where_the_checkpoint_is(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert places("/gone/probes/fisher.jsonl", checkpoint) == [
        Path("/gone/probes/fisher.jsonl"),
        tmp_path / "checkpoints" / "fisher.jsonl",
        tmp_path / "checkpoints" / "probes" / "fisher.jsonl",
        tmp_path / "probes" / "fisher.jsonl",
    ]
    assert places("/gone/probes/fisher.jsonl", None) == [Path("/gone/probes/fisher.jsonl")]
    assert places(None, checkpoint) == []


# -- one process alone -------------------------------------------------------------------------------------------------

PROCESSES = multiprocessing.get_context("fork") if sys.platform != "win32" else None
alone = pytest.mark.skipif(PROCESSES is None, reason="processes are forked")


def holding(path, ready):
    file = opened_alone(path, path.stat().st_size)
    assert file is not None
    ready.set()
    time.sleep(60)


@pytest.fixture
def held(tmp_path):
    """A file that another process holds, and that process."""
    path, ready = tmp_path / "fisher.jsonl", PROCESSES.Event()
    path.write_bytes(b"1\n")
    process = PROCESSES.Process(target=holding, args=(path, ready))
    process.start()
    assert ready.wait(30)
    yield path, process
    process.kill()
    process.join()


@alone
def test_a_file_that_another_process_holds_is_not_opened(held):
    path, _ = held
    assert opened_alone(path, 2) is None
    assert path.read_bytes() == b"1\n"  # anybody may read it


@alone
def test_the_lock_of_a_process_that_was_killed_is_gone(held):
    path, process = held
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with opened_alone(path, 2) as file:
        assert file is not None
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_of_another_size_or_that_is_gone_is_not_opened(tmp_path):
    path = tmp_path / "fisher.jsonl"
    assert opened_alone(path, 0) is None
    path.write_bytes(b"1\n2\n")
    assert opened_alone(path, 2) is None
    with opened_alone(path, 4) as file:
        assert file is not None


def no_locks(file):
    raise OSError(errno.ENOLCK, "no locks available")


def test_where_files_can_not_be_locked_nobody_appends_to_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_lock", no_locks)
    first = Journal(tmp_path / "fisher.jsonl", ["1"])
    first.flush()
    first.add("2")
    state = first.state_dict()
    assert first.path.read_text() == "1\n2\n"  # its own, which it has made
    second = Journal(first.path, ["1", "2"], are_written=True)
    second.add("3")
    assert Journal.read(second.state_dict()) == (tmp_path / "fisher-1.jsonl", ["1", "2", "3"])
    assert Journal.read(state) == (first.path, ["1", "2"])


def test_a_write_that_breaks_off_may_be_tried_again(tmp_path):
    _, file = created(tmp_path / "file")
    write_at(file, 0, b"one, two, thr")
    write_at(file, 5, b"2")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"one, 2"


# -- two journals on one file ------------------------------------------------------------------------------------------


def test_of_two_journals_that_go_on_from_one_file_the_second_to_write_has_its_own(tmp_path):
    state = Journal(tmp_path / "fisher.jsonl", ["1"]).state_dict()
    both = []
    for line in ("2", "3"):
        path, lines = Journal.read(state)
        journal = Journal(path, lines, are_written=True)
        journal.add(line)
        both.append(journal)
    states = [json.loads(json.dumps(journal.state_dict())) for journal in both]
    for journal in both:
        journal.add("4")
    states += [journal.state_dict() for journal in both]
    found = [Journal.read(each) for each in states]
    assert [path.name for path, _ in found] == ["fisher.jsonl", "fisher-1.jsonl"] * 2
    assert [lines for _, lines in found] == [["1", "2"], ["1", "3"], ["1", "2", "4"], ["1", "3", "4"]]


def test_a_journal_that_was_released_and_whose_file_has_grown_goes_on_in_its_own(tmp_path):
    first = Journal(tmp_path / "fisher.jsonl", ["1"])
    first.flush()
    first.release()
    second = Journal(first.path, ["1"], are_written=True)
    second.add("2")
    second.flush()
    second.release()
    first.add("3")
    assert Journal.read(first.state_dict()) == (tmp_path / "fisher-1.jsonl", ["1", "3"])
    assert second.path.read_text() == "1\n2\n"


def test_a_file_deleted_under_a_journal_is_written_again(tmp_path):
    journal = Journal(tmp_path / "fisher.jsonl", ["1"])
    journal.flush()
    journal.path.unlink()
    journal.add("2")
    assert Journal.read(journal.state_dict()) == (tmp_path / "fisher.jsonl", ["1", "2"])
