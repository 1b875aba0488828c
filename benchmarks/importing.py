"""What `import lightning_probes` adds to `import lightning`."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.cells import Row

_CODE = """
import time
start = time.{clock}()
import lightning
between = time.{clock}()
import lightning_probes
print(between - start, time.{clock}() - between)
"""


def added_seconds(rounds: int, clock: str = "wall") -> Row:
    """Median over new processes, each of which imports one after the other."""
    code = _CODE.format(clock={"wall": "perf_counter", "cpu": "process_time"}[clock])
    found = []
    for number in range(rounds + 1):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        if number:  # the first fills the caches of the disk
            found.append([float(seconds) for seconds in run.stdout.split()[-2:]])
    alone, added = (statistics.median(column) for column in zip(*found, strict=True))
    return {"seconds": added, "of_lightning": alone}
