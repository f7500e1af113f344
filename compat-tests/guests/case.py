"""One boot or several of a guest on one share: the store, the program that serves it, the jobs, and what is compared.

The jobs print one line per step and end with `job NAME: ok` or `job NAME: FAILED`; what else they tell the host is in
`stream.py`. After the last job the guest lists all that it sees, and that must be what the store holds.
"""

import difflib
import os
import random
import shutil
import tempfile
import time
from typing import NamedTuple

import kernel
import libvirt_guest
import process
import stores
import uml
from daemon import Daemon

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CACHE_DIR = os.path.join(ROOT, "target", "guests")
TAG = "share"
PROBLEMS_SHOWN = 20
# Attributes of so many names are looked up in a store that answers one name at a time.
ATTRIBUTES_COMPARED = 200
POSIX_FLAG = "--posix-metadata"
# moto keeps all objects in memory, holes included, and copies them more than once.
MOTO_FILE_BYTES_MAX = 64 << 20


class Share(NamedTuple):
    """What is mounted: a directory (`passthrough`), or a backend on a `server`, with or without POSIX metadata."""

    name: str
    server: str
    posix: bool = False

    @property
    def passthrough(self):
        return self.name == "passthrough"

    def open(self, work_dir):
        """The store, with its server started."""
        match self.server:
            case "directory":
                return stores.Directory(os.path.join(work_dir, "store"))
            case "moto":
                return stores.moto(work_dir)
            case "s3s-fs":
                return stores.s3s_fs(work_dir)

    def arguments(self, store):
        """The daemon's options."""
        if self.passthrough:
            return ["--shared-dir", store.path]
        return ["--backend", store.backend_url(), *([POSIX_FLAG] if self.posix else [])]

    def entry(self, store):
        """The same as keys of an entry of [[shares]]."""
        return {**store.configuration(), **({"posix_metadata": True} if self.posix else {})}

    def settings(self):
        """What the jobs must know of the share."""
        return {
            "KIND": "passthrough" if self.passthrough else "backend",
            "POSIX": int(self.passthrough or self.posix),
            "FILE_BYTES_MAX": MOTO_FILE_BYTES_MAX if self.server == "moto" else "",
        }


SHARES = {
    share.name: share
    for share in (
        Share("passthrough", "directory"),
        Share("fs", "directory"),
        Share("s3", "moto"),
        Share("s3s", "s3s-fs"),
        Share("fs-posix", "directory", posix=True),
        Share("s3-posix", "moto", posix=True),
        Share("s3s-posix", "s3s-fs", posix=True),
    )
}


class Report:
    """Counts and prints results as they come."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def add(self, name, problem=None):
        """One result; `problem` is None when it passed."""
        if problem is None:
            self.passed += 1
            print(f"test {name} ... ok", flush=True)
        else:
            self.failed += 1
            print(f"test {name} ... FAILED\n{indent(problem)}", flush=True)


def indent(text):
    return "\n".join("    " + line for line in str(text).rstrip().splitlines())


def prepare_job(directory, settings, jobs, programs=()):
    """A directory with all that the guest needs: the jobs, their order, their settings and programs of the host."""
    shutil.copytree(os.path.join(HERE, "jobs"), directory, ignore=shutil.ignore_patterns("__pycache__"))
    with open(os.path.join(directory, "plan"), "w") as file:
        file.write("".join(f"{job}\n" for job in jobs))
    with open(os.path.join(directory, "settings"), "w") as file:
        file.write("".join(f"{name}={value}\n" for name, value in settings.items()))
    for program in programs:
        shutil.copy(program, directory)


class Case:
    """One share in one guest, served by one program. Its results are one per job and one per comparison.

    `rounds` are the lists of jobs of one boot each, all on one store: every boot has a daemon of its own, so that what
    a later one finds has been in the store.
    """

    def __init__(self, guest, program, share, rounds, settings, programs=(), seconds=None, keep=False):
        self.guest = guest
        self.program = program
        self.share = share
        self.rounds = [jobs for jobs in rounds if jobs]
        self.settings = {**settings, **share.settings()}
        self.programs = programs
        self.seconds = seconds
        self.keep = keep
        self.name = f"guest::{guest}::{share.name}::{os.path.basename(program)}"
        self.work_dir = tempfile.mkdtemp(prefix="ovfs-guest-")
        # The processes of a launcher, which are not ours, must reach what is below.
        os.chmod(self.work_dir, 0o755)
        # Of each boot, in order.
        self.streams = []
        self.description = None

    def run(self, report, machine, before=None):
        """Boots, reports every job and every comparison, and cleans up whatever happened.

        `before`, a pair of name and bytes, is put into the store before the first boot.
        """
        began = time.monotonic()
        store = None
        try:
            store = self.share.open(self.work_dir)
            if before:
                store.put(*before)
            for number, jobs in enumerate(self.rounds):
                suffix = "" if number == 0 else f"-after-remount-{number}"
                directory = os.path.join(self.work_dir, f"boot-{number}")
                os.mkdir(directory, 0o755)
                stream = self.boot(store, machine, jobs, directory)
                self.report_jobs(report, stream, jobs)
                report.add(f"{self.name}::store{suffix}", self.compare(store, stream))
            if isinstance(store, stores.Directory):
                self.description = store.describe()
        except Exception as error:
            report.add(f"{self.name}::boot", f"{type(error).__name__}: {error}")
        finally:
            if store:
                store.close()
            if self.keep:
                print(f"    kept {self.work_dir}")
            else:
                shutil.rmtree(self.work_dir, ignore_errors=True)
        print(f"    {self.name}: {time.monotonic() - began:.0f} s{self.times(began)}", flush=True)

    def times(self, began):
        """Seconds from the start to the first job's end, and from each job's end to the next one's."""
        words = []
        for stream in self.streams:
            for job, at in stream.finished.items():
                words.append(f"{job} {at - began:.1f}")
                began = at
        return f" ({', '.join(words)})" if words else ""

    def boot(self, store, machine, jobs, directory):
        """One boot with a daemon of its own. Returns its Stream."""
        job_dir = os.path.join(directory, "job")
        prepare_job(job_dir, self.settings, jobs, self.programs)
        arguments = self.share.arguments(store)
        environment = {} if self.share.passthrough else store.environment()
        limit = {} if self.seconds is None else {"seconds": self.seconds}
        if self.guest == "libvirt":
            shared = store.path if self.share.passthrough else directory
            entry = None if self.share.passthrough else libvirt_guest.Entry(directory, self.share.entry(store))
            try:
                stream = libvirt_guest.run(machine, self.program, shared, TAG, job_dir, directory, store)
            finally:
                if entry:
                    entry.close()
            self.streams.append(stream)
            return stream
        if self.guest == "uml":
            arguments += ["--tag", TAG]
        daemon = Daemon([self.program, *arguments], directory, env=environment)
        stream = None
        try:
            if self.guest == "uml":
                busybox = kernel.find_busybox(CACHE_DIR)
                stream = uml.run(busybox, job_dir, daemon.socket_path, TAG, directory, store, **limit)
            else:
                stream = machine.run(job_dir, daemon.socket_path, TAG, directory, store, **limit)
            self.streams.append(stream)
            code = daemon.wait_end()
            if code != 0:
                stream.problems.append(f"the daemon ended with {code}, not 0")
        finally:
            daemon.stop()
            if stream is None or stream.problems:
                print(indent("the daemon's log ends:\n" + process.tail(daemon.log_path)))
        return stream

    def report_jobs(self, report, stream, jobs):
        """One result per job: from its own line, with the steps that failed."""
        begin = 0
        done = []
        for index, line in enumerate(stream.text):
            if line.startswith("job ") and line.endswith((": ok", ": FAILED")):
                job = line.removeprefix("job ").partition(":")[0]
                done.append(job)
                said = stream.text[begin:index]
                problem = None if line.endswith(": ok") else "\n".join(failures(said) or said[-10:]) or "failed"
                report.add(f"{self.name}::{job}", problem)
                begin = index + 1
        for job in jobs:
            if job not in done:
                last = "\n".join(stream.text[begin:][-10:])
                report.add(f"{self.name}::{job}", f"did not finish; the last it said:\n{last}")

    def compare(self, store, stream):
        """The guest's manifest against the store's, and what went wrong on the way. None when all is well."""
        problems = list(stream.problems)
        found = store.sums()
        for name, md5 in stream.sums.items():
            if found.get(name) != md5:
                problems.append(f"{name}: the guest sees {md5}, the store holds {found.get(name)}")
        for name, kind in stream.special.items():
            if store.special(name) != kind:
                problems.append(f"{name}: the guest sees {kind}, the store holds {store.special(name)}")
        unseen = sorted(found.keys() - stream.sums.keys() - stream.special.keys())
        problems += [f"{name}: in the store, not in the guest" for name in unseen]
        if found and not stream.sums:
            problems.append("the guest's manifest is empty")
        dirs = store.dirs()
        problems += [f"{name}/: in the guest, not in the store" for name in sorted(stream.dirs - dirs)]
        problems += [f"{name}/: in the store, not in the guest" for name in sorted(dirs - stream.dirs)]
        problems += self.compare_attributes(store, stream)
        if self.share.server == "moto" and store.unfinished_uploads():
            problems.append(f"{store.unfinished_uploads()} multipart uploads were neither finished nor aborted")
        return "\n".join(problems[:PROBLEMS_SHOWN]) if problems else None

    @staticmethod
    def compare_attributes(store, stream):
        """Mode, owner and time as the guest sees them against those that the store keeps, for a sample of names."""
        names = sorted(stream.attributes)
        if len(names) > ATTRIBUTES_COMPARED:
            names = random.Random(len(names)).sample(names, ATTRIBUTES_COMPARED)
        problems = []
        for name in names:
            kept = store.attributes(name, is_dir=name in stream.dirs)
            if kept is not None and kept != stream.attributes[name]:
                problems.append(f"{name}: the guest sees {stream.attributes[name]}, the store holds {kept}")
        return problems


def failures(lines):
    """The steps that failed, with the words of the command below each."""
    kept, inside = [], False
    for line in lines:
        inside = line.startswith("FAIL") or (inside and line.startswith("     "))
        if inside:
            kept.append(line)
    return kept


def compare_twins(report, reference, ours):
    """What the guest printed and what the host finds must be the same for both programs."""
    name = f"guest::{ours.guest}::{ours.share.name}::same-as-{os.path.basename(reference.program)}"
    if not reference.streams or len(reference.streams) != len(ours.streams):
        report.add(name, "one of the two did not run")
        return
    problem = []
    for theirs, mine in zip(reference.streams, ours.streams):
        problem += differences(theirs.text, mine.text)
        problem += differences(theirs.verdicts(), mine.verdicts())
    problem += differences(reference.description or [], ours.description or [])
    report.add(name, "\n".join(problem[:PROBLEMS_SHOWN]) or None)


def differences(reference, ours):
    return list(difflib.unified_diff(reference, ours, "reference", "ours", lineterm="", n=0))
