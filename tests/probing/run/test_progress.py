from types import SimpleNamespace

from lightning_probes.probing.run.progress import flag_table
from lightning_probes.probing.run.record import Record
from lightning_probes.results import Flag


def rows_logged(events):
    """Of all tables together, for a flag that rises at every second event."""
    record, logged = Record(), 0
    probes = [SimpleNamespace(name="p", log=SimpleNamespace(record=record))]
    for step in range(events):
        risen = record.add(step, 0, {"p/flag/high": Flag("p/flag/high", step % 2 == 0)}, {})
        logged += len(flag_table(probes, len(risen)))
    return logged


def test_the_tables_of_a_flag_that_comes_and_goes_grow_with_the_events_and_not_with_their_square():
    few, many = rows_logged(500), rows_logged(4_000)
    assert many / few < 1.25 * 8
    assert rows_logged(40) == sum(range(1, 21))  # each of the first is logged at once
