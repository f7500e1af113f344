"""Child processes of the tests: each is started in a session of its own and stopped by its own id, never by name."""

import os
import signal
import subprocess
import time


class Timeout(Exception):
    """Something did not happen within its time."""


def wait_until(condition, seconds, what):
    """Polls `condition` until it returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Timeout(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def start(argv, log_path, env=None, cwd=None, stdin=subprocess.DEVNULL, pass_fds=(), stdout=None):
    """Starts `argv` as the leader of a new session. Output and errors go to the file `log_path`."""
    with open(log_path, "ab") as log:
        return subprocess.Popen(
            [str(a) for a in argv],
            stdin=stdin,
            stdout=log if stdout is None else stdout,
            stderr=log,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )


def stop(child, patience_seconds=10):
    """Ends a child and all of its session, asking first. Returns its exit code."""
    if child.poll() is None:
        _signal_group(child.pid, signal.SIGTERM)
        try:
            child.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            _signal_group(child.pid, signal.SIGKILL)
            child.wait()
    # Left-over members of the group, if the leader went first.
    _signal_group(child.pid, signal.SIGKILL)
    return child.returncode


def _signal_group(pid, number):
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def tail(path, lines=25):
    """The last lines of a log, for a failure message."""
    try:
        with open(path, errors="replace") as file:
            return "".join(file.readlines()[-lines:])
    except OSError as error:
        return f"({path}: {error.strerror})"
