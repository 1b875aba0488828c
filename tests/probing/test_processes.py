"""What one process can show; what several do together is in `tests/test_processes.py`."""

import signal
import subprocess
import sys
import threading

import pytest
import torch

from lightning_probes.probing.processes import PeerError, Processes, _undisturbed_by_signals, is_out_of_memory


def allocate_on_cpu():
    torch.empty(1 << 60)


@pytest.mark.parametrize("make", [torch.OutOfMemoryError, torch.cuda.OutOfMemoryError, MemoryError])
def test_lack_of_memory_is_known_by_its_type(make):
    assert is_out_of_memory(make("no memory"))


def test_lack_of_memory_on_cpu_is_known_by_what_torch_says():
    with pytest.raises(RuntimeError) as caught:
        allocate_on_cpu()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error", [None, RuntimeError("shapes differ"), ValueError("DefaultCPUAllocator"), SystemExit()]
)
def test_other_errors_are_no_lack_of_memory(error):
    assert not is_out_of_memory(error)


def test_alone_a_process_gets_back_what_it_gave():
    alone, tensor = Processes(), torch.arange(3.0)
    with alone.together():
        assert alone.sum(tensor) is tensor
        assert alone.gather(tensor) == [tensor]
        assert alone.tensors_from_first({"a": tensor}) == {"a": tensor}
        assert alone.from_first(None) is None


@pytest.mark.parametrize("error", [ValueError("a"), KeyboardInterrupt(), torch.OutOfMemoryError("b")])
def test_in_a_single_process_an_error_passes_unchanged(error):
    alone = Processes()
    with pytest.raises(type(error)) as caught, alone.together():
        raise error
    assert caught.value is error
    assert alone.out_of_memory == isinstance(error, torch.OutOfMemoryError)


def test_lack_of_memory_is_forgotten_at_the_next_attempt():
    alone = Processes()
    with pytest.raises(MemoryError), alone.together():
        raise MemoryError
    with alone.together():
        assert not alone.out_of_memory


def test_an_exchange_that_broke_off_is_told_from_a_failure_of_before(monkeypatch):
    """As when another process is killed: `all_reduce` fails in those that live."""

    def fails_elsewhere(counts):
        counts[0] += 1

    def lost(counts):
        raise RuntimeError("connection lost")

    def say(said, mine):
        said[1] = "ValueError: no such luck"

    def exchange_twice(processes, tensor):
        with pytest.raises(RuntimeError, match="connection lost"):
            processes.sum(tensor)
        processes.sum(tensor)

    processes, tensor = Processes(size=2), torch.ones(1)
    monkeypatch.setattr("torch.distributed.all_gather_object", say)
    monkeypatch.setattr("torch.distributed.all_reduce", fails_elsewhere)
    with pytest.raises(PeerError, match="process 1 failed: ValueError: no such luck"), processes.together():
        processes.sum(tensor)
    monkeypatch.setattr("torch.distributed.all_reduce", lost)
    with pytest.raises(PeerError, match="failed: look for the first error in the logs"), processes.together():
        exchange_twice(processes, tensor)


@pytest.fixture
def heard():
    """The signals that arrive, in order."""
    signals = []
    handlers = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    for which in handlers:
        signal.signal(which, lambda number, _: signals.append(number))
    yield signals
    for which, handler in handlers.items():
        signal.signal(which, handler)


def test_signals_wait_until_an_exchange_is_over_and_arrive_in_order(heard):
    with _undisturbed_by_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert heard == []
    assert heard == [signal.SIGTERM, signal.SIGINT]
    signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGTERM, signal.SIGINT, signal.SIGINT]


def test_signals_arrive_also_where_the_exchange_failed(heard):
    def lost():
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("connection lost")

    with pytest.raises(RuntimeError, match="connection"), _undisturbed_by_signals():
        lost()
    assert heard == [signal.SIGTERM]


def test_an_exchange_within_another_passes_signals_on_to_the_outer_one(heard):
    with _undisturbed_by_signals():
        with _undisturbed_by_signals():
            signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]


def test_interruption_in_an_exchange_is_raised_after_it():
    done = []

    def interrupted():
        signal.raise_signal(signal.SIGINT)
        done.append(True)

    with pytest.raises(KeyboardInterrupt), _undisturbed_by_signals():
        interrupted()
    assert done


def test_a_process_that_is_told_to_end_in_an_exchange_ends_after_it():
    """By the default handler of SIGTERM, which ends the process without an exception."""
    code = (
        "import signal\n"
        "from lightning_probes.probing.processes import _undisturbed_by_signals\n"
        "with _undisturbed_by_signals():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('exchanged', flush=True)\n"
        "print('went on', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "exchanged\n")


def test_threads_that_may_set_no_handlers_leave_signals_alone(heard):
    handler, seen = signal.getsignal(signal.SIGTERM), []

    def exchange():
        with _undisturbed_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=exchange)
    thread.start()
    thread.join()
    assert seen == [handler]
