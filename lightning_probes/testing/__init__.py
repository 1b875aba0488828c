"""The shared tester: checks that your callback keeps the promises of this package.

Call `check_probe(MyProbe)` in a test, or parametrize a test with `cases(MyProbe)`. You can use the parts in tests of
your own: the models and data of the zoo (`CASES`), `fit`, and the comparison of two fits (`fingerprint`).
"""

from lightning_probes.testing.checks import Check, cases, check_probe
from lightning_probes.testing.fingerprint import assert_same, fingerprint
from lightning_probes.testing.fitting import Run, fit
from lightning_probes.testing.zoo import CASES, Case, Fit

__all__ = ["CASES", "Case", "Check", "Fit", "Run", "assert_same", "cases", "check_probe", "fingerprint", "fit"]
