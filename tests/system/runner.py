"""Runs every `test_*.py` here and prints one line a test, as `cargo xtask test` reads it:

    test MODULE.CLASS.NAME ... ok (1.2 s) | FAILED | skipped: WHY

Each module starts one `ocs up` of its own (see `installation.py`). Arguments choose
modules by name; none means all.
"""

import sys
import time
import unittest


class OneLineResult(unittest.TestResult):
    """Prints outcomes as they come and details of failures at once."""

    def startTest(self, test):
        super().startTest(test)
        self.started = time.monotonic()

    def _line(self, test, outcome):
        print(f"test {test.id()} ... {outcome}", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self._line(test, f"ok ({time.monotonic() - self.started:.1f} s)")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._line(test, "FAILED")
        print(self.failures[-1][1], flush=True)

    def addError(self, test, err):
        super().addError(test, err)
        self._line(test, "FAILED")
        print(self.errors[-1][1], flush=True)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._line(test, f"skipped: {reason}")

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._line(subtest, "FAILED")
            print((self.failures + self.errors)[-1][1], flush=True)


def main():
    loader = unittest.TestLoader()
    patterns = [f"{name}.py" for name in sys.argv[1:]] or ["test_*.py"]
    result = OneLineResult()
    # One suite: of several, each ends the module before it once more.
    unittest.TestSuite(loader.discover(".", pattern=pattern) for pattern in patterns).run(result)
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
