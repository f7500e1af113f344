"""Starts the daemon under test, virtiofsd or ovfs, waits until it is ready, and checks how it ends."""

import os
import subprocess

import process

READY = "Waiting for vhost-user socket connection"


class Daemon:
    """One daemon for one guest: it ends by itself when the guest goes."""

    def __init__(self, argv, directory, name="daemon", env=None):
        """Starts `argv` (program and options) with a socket inside `directory`."""
        self.socket_path = os.path.join(directory, f"{name}.sock")
        self.log_path = os.path.join(directory, f"{name}.log")
        self.argv = list(argv) + ["--socket-path", self.socket_path]
        full_env = {**os.environ, **(env or {})}
        # The readiness line is an INFO line.
        full_env.pop("RUST_LOG", None)
        self.child = process.start(self.argv, self.log_path, env=full_env)
        try:
            process.wait_until(self._is_ready_or_gone, 30, f"{argv[0]} ready")
        except process.Timeout:
            self.stop()
            raise
        if self.child.poll() is not None:
            raise RuntimeError(f"{argv[0]} ended with {self.child.returncode} at start:\n{self.log()}")

    def _is_ready_or_gone(self):
        return self.child.poll() is not None or READY in self.log()

    def log(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()

    def wait_end(self, seconds=30):
        """Waits for the end that follows the guest's, and returns the exit code."""
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            raise process.Timeout(f"{self.argv[0]} still running {seconds} s after its guest went") from None

    def stop(self):
        return process.stop(self.child)
