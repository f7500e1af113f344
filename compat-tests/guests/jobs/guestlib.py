"""What the jobs written in Python share: `lib.sh` for them. Steps print only what is the same on every correct file
system, so that two runs can be compared line by line."""

import os
import sys
import traceback

KIND = os.environ["KIND"]
# Whether modes, owners, times, symlinks and extended attributes are kept.
POSIX = os.environ["POSIX"] == "1"
HARD_LINKS = KIND == "passthrough"
# A directory of the guest's own memory.
SCRATCH = os.environ["TMPDIR"]
failures = 0


def setting(name):
    """A number from the settings."""
    return int(os.environ[name])


def step(name, action, *arguments):
    """The action must neither raise nor return a problem."""
    global failures
    try:
        problem = action(*arguments)
    except Exception:
        problem = traceback.format_exc()
    if problem:
        failures += 1
        print(f"FAIL {name}")
        print("\n".join("     " + line for line in str(problem).splitlines()))
    else:
        print(f"ok   {name}")
    sys.stdout.flush()


def same(name, expected, found):
    step(name, lambda: None if expected == found else f"expected {expected!r}, found {found!r}")


def result(suite, verdict, case):
    """One case of a suite: ok, FAILED or skipped. Which of them may fail is known to the host."""
    print(f"@@RESULT {suite} {verdict} {case}", flush=True)


def detail(suite, case, text):
    """Why a case failed, for the log."""
    for line in text.splitlines():
        print(f"@@DETAIL {suite} {case}\t{line}", flush=True)


def finish():
    sys.exit(1 if failures else 0)
