"""What a guest says, as it says it: lines of text from its result stream, of which those with `@@` speak to the host.

    @@PUT NAME          the host puts an object NAME into the store, behind the guest's back
    @@CHECK MD5 NAME    the store must hold NAME with this checksum now
    @@SUM MD5 NAME      one line of the guest's manifest: a file
    @@DIR NAME          one line of the guest's manifest: a directory
    @@STATUS N          the job's exit status; the guest powers off
    @@DONE N            the job's exit status; an interactive shell follows
"""

import os
import threading
import time


class Stream:
    """Reads a guest's result stream in a thread of its own, answers its requests, keeps the rest."""

    def __init__(self, fd, store=None, echo=None):
        self.fd = fd
        self.store = store
        self.echo = echo
        self.text = []
        # When each job's last line came, on this process's monotonic clock.
        self.finished = {}
        self.sums = {}
        self.dirs = set()
        self.status = None
        self.problems = []
        self.thread = threading.Thread(target=self._read, name="guest-stream", daemon=True)
        self.thread.start()

    def finish(self):
        """Waits for the end of the stream; call it when the guest is gone."""
        self.thread.join(10)
        return self.status

    def _read(self):
        with os.fdopen(self.fd, "rb", buffering=0) as pipe:
            rest = b""
            while True:
                try:
                    data = pipe.read(65536)
                except OSError:
                    break
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(line.rstrip(b"\r").decode(errors="replace"))
            if rest:
                self._take(rest.decode(errors="replace"))

    def _take(self, line):
        try:
            word, _, rest = line.partition(" ")
            match word:
                case "@@PUT":
                    self.store.put(rest, f"from outside: {rest}\n".encode())
                case "@@CHECK":
                    md5, _, name = rest.partition(" ")
                    found = self.store.md5(name)
                    if found != md5:
                        self.problems.append(f"{name}: the guest closed {md5}, the store holds {found}")
                case "@@SUM":
                    md5, _, name = rest.partition(" ")
                    self.sums[name] = md5
                case "@@DIR":
                    self.dirs.add(rest)
                case "@@STATUS" | "@@DONE":
                    self.status = int(rest)
                case _:
                    self.text.append(line)
                    if word == "job":
                        self.finished[rest.partition(":")[0]] = time.monotonic()
                    if self.echo:
                        self.echo(line)
        except Exception as error:  # a fault here must fail the test, not end the thread
            self.problems.append(f"{line!r}: {error}")
