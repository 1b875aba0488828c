"""The shared tester: what this package promises of its own callbacks, to be tried on yours.

`check_probe(MyProbe)` in one test, or `cases(MyProbe)` to parametrize one with. The parts serve tests of your own: the
models and data of the zoo (`CASES`), `fit`, and the comparison of what two fits left behind.
"""

from lightning_probes.testing.checks import Check, cases, check_probe
from lightning_probes.testing.fingerprint import assert_same, fingerprint
from lightning_probes.testing.fitting import Run, fit
from lightning_probes.testing.zoo import CASES, Case, Fit

__all__ = ["CASES", "Case", "Check", "Fit", "Run", "assert_same", "cases", "check_probe", "fingerprint", "fit"]
