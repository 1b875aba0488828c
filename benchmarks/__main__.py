"""`python -m benchmarks`: run the comparison, print the table, write it down."""

from __future__ import annotations

import sys

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())
