"""What a guest says, as it says it: lines of text from its result stream, of which those with `@@` speak to the host.

    @@PUT NAME          the host puts an object NAME into the store, behind the guest's back
    @@CHECK MD5 NAME    the store must hold NAME with this checksum now
    @@SUM MD5 NAME      one line of the guest's manifest: a file
    @@DIR NAME          one line of the guest's manifest: a directory
    @@LINK NAME\tTARGET one line of the guest's manifest: a symlink
    @@NODE KIND NAME    one line of the guest's manifest: a fifo or a socket
    @@ATTR MODE UID GID SECONDS NAME  permissions in octal, owner, group, time of last change
    @@RESULT SUITE VERDICT CASE  one case of a suite: ok, FAILED or skipped
    @@DETAIL SUITE CASE\tTEXT  why a case failed, for the log alone
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
        # Names that are no regular files, and what they are: `link TARGET`, `fifo`, `socket`.
        self.special = {}
        self.attributes = {}
        # By suite: the verdict of each case, and what was said of those that failed.
        self.results = {}
        self.details = {}
        self.status = None
        self.problems = []
        self.thread = threading.Thread(target=self._read, name="guest-stream", daemon=True)
        self.thread.start()

    def finish(self):
        """Waits for the end of the stream; call it when the guest is gone."""
        self.thread.join(10)
        return self.status

    def verdicts(self):
        """One line per case of every suite, in an order that two runs share."""
        return sorted(
            f"{suite} {case}: {verdict}" for suite, cases in self.results.items() for case, verdict in cases.items()
        )

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
                case "@@LINK":
                    name, _, target = rest.partition("\t")
                    self.special[name] = f"link {target}"
                case "@@NODE":
                    kind, _, name = rest.partition(" ")
                    self.special[name] = kind
                case "@@ATTR":
                    mode, uid, gid, seconds, name = rest.split(" ", 4)
                    self.attributes[name] = (int(mode, 8), int(uid), int(gid), int(seconds.partition(".")[0]))
                case "@@RESULT":
                    suite, verdict, case = rest.split(" ", 2)
                    self.results.setdefault(suite, {})[case] = verdict
                case "@@DETAIL":
                    suite, _, said = rest.partition(" ")
                    case, _, said = said.partition("\t")
                    self.details.setdefault(suite, {}).setdefault(case, []).append(said)
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
