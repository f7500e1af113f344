#!/usr/bin/env python3
"""Runs the shell jobs of `jobs/` in real guests, on real shares, and compares what is left with the store.

A passthrough share is served once by virtiofsd and once by ovfs: what the guest prints and what the host finds in the
directory must be equal. A backend is served by ovfs, and every checksum that the guest sees must be the one that an
independent client reads from the store. The last line is `N passed, N failed`; the exit code is 1 when any failed.
"""

import argparse
import difflib
import os
import shutil
import signal
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import kernel  # noqa: E402
import libvirt_guest  # noqa: E402
import process  # noqa: E402
import qemu  # noqa: E402
import stores  # noqa: E402
import uml  # noqa: E402
from daemon import Daemon  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(HERE))
CACHE_DIR = os.path.join(ROOT, "target", "guests")
TAG = "share"
JOBS = ("tree", "rewrite", "many", "outside", "posix")
# The jobs that a guest under libvirt runs: there the launcher is under test, not the file system.
LAUNCHER_JOBS = ("tree", "outside")
BEFORE = "before.txt"


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


def prepare_job(directory, kind, jobs, many):
    """A directory with all that the guest needs: the jobs, their order and their settings."""
    shutil.copytree(os.path.join(HERE, "jobs"), directory)
    with open(os.path.join(directory, "plan"), "w") as file:
        file.write("".join(f"{job}\n" for job in jobs))
    with open(os.path.join(directory, "settings"), "w") as file:
        file.write(f"KIND={kind}\nMANY={many}\n")


class Case:
    """One boot: a guest, a program that serves, a store. Its results are one per job and one per comparison."""

    def __init__(self, guest, program, share, options):
        self.guest = guest
        self.program = program
        self.share = share
        self.options = options
        self.name = f"guest::{guest}::{share}::{os.path.basename(program)}"
        self.jobs = [job for job in (LAUNCHER_JOBS if guest == "libvirt" else JOBS) if job in options.job]
        self.work_dir = tempfile.mkdtemp(prefix="ovfs-guest-")
        # The processes of a launcher, which are not ours, must reach what is below.
        os.chmod(self.work_dir, 0o755)
        self.stream = None
        self.description = None

    def run(self, report, machine):
        """Boots, reports every job and every comparison, and cleans up whatever happened."""
        began = time.monotonic()
        store = None
        try:
            store = self.open_store()
            store.put(BEFORE, f"from outside: {BEFORE}\n".encode())
            self.boot(store, machine)
            self.report_jobs(report)
            report.add(f"{self.name}::store", self.compare(store))
            if isinstance(store, stores.Directory):
                self.description = store.describe()
        except Exception as error:
            report.add(f"{self.name}::boot", f"{type(error).__name__}: {error}")
        finally:
            if store:
                store.close()
            if self.options.keep:
                print(f"    kept {self.work_dir}")
            else:
                shutil.rmtree(self.work_dir, ignore_errors=True)
        print(f"    {self.name}: {time.monotonic() - began:.0f} s{self.times(began)}", flush=True)

    def times(self, began):
        """Seconds from boot to the first job's end, and from each job's end to the next one's."""
        words = []
        for job, at in (self.stream.finished if self.stream else {}).items():
            words.append(f"{job} {at - began:.1f}")
            began = at
        return f" ({', '.join(words)})" if words else ""

    def open_store(self):
        match self.share:
            case "passthrough" | "fs":
                return stores.Directory(os.path.join(self.work_dir, "store"))
            case "s3":
                return stores.moto(self.work_dir)
            case "s3s":
                return stores.s3s_fs(self.work_dir)

    def boot(self, store, machine):
        job_dir = os.path.join(self.work_dir, "job")
        kind = "passthrough" if self.share == "passthrough" else "backend"
        prepare_job(job_dir, kind, self.jobs, self.options.many)
        if kind == "passthrough":
            arguments, environment = ["--shared-dir", store.path], {}
        else:
            arguments, environment = ["--backend", store.backend_url()], store.environment()
        if self.guest == "libvirt":
            directory = store.path if kind == "passthrough" else self.work_dir
            binary = self.program
            if kind != "passthrough":
                binary = libvirt_guest.write_wrapper(self.work_dir, self.program, arguments, environment)
            self.stream = libvirt_guest.run(machine, binary, directory, TAG, job_dir, self.work_dir, store)
            return
        if self.guest == "uml":
            arguments += ["--tag", TAG]
        daemon = Daemon([self.program, *arguments], self.work_dir, env=environment)
        try:
            if self.guest == "uml":
                busybox = kernel.find_busybox(CACHE_DIR)
                self.stream = uml.run(busybox, job_dir, daemon.socket_path, TAG, self.work_dir, store)
            else:
                self.stream = machine.run(job_dir, daemon.socket_path, TAG, self.work_dir, store)
            code = daemon.wait_end()
            if code != 0:
                self.stream.problems.append(f"the daemon ended with {code}, not 0")
        finally:
            daemon.stop()
            if self.stream is None or self.stream.problems:
                print(indent("the daemon's log ends:\n" + process.tail(daemon.log_path)))

    def report_jobs(self, report):
        """One result per job: from its own line, with the steps that failed."""
        text = self.stream.text
        begin = 0
        done = []
        for index, line in enumerate(text):
            if line.startswith("job ") and line.endswith((": ok", ": FAILED")):
                job = line.removeprefix("job ").partition(":")[0]
                done.append(job)
                problem = None if line.endswith(": ok") else "\n".join(failures(text[begin:index])) or "failed"
                report.add(f"{self.name}::{job}", problem)
                begin = index + 1
        for job in self.jobs:
            if job not in done:
                report.add(f"{self.name}::{job}", "did not finish; the last it said:\n" + "\n".join(text[begin:][-10:]))

    def compare(self, store):
        """The guest's manifest against the store's, and what went wrong on the way. None when all is well."""
        problems = list(self.stream.problems)
        found = store.sums()
        for name, md5 in self.stream.sums.items():
            if found.get(name) != md5:
                problems.append(f"{name}: the guest sees {md5}, the store holds {found.get(name)}")
        problems += [f"{name}: in the store, not in the guest" for name in sorted(found.keys() - self.stream.sums.keys())]
        if not self.stream.sums:
            problems.append("the guest's manifest is empty")
        dirs = store.dirs()
        problems += [f"{name}/: in the guest, not in the store" for name in sorted(self.stream.dirs - dirs)]
        problems += [f"{name}/: in the store, not in the guest" for name in sorted(dirs - self.stream.dirs)]
        if self.share == "s3" and store.unfinished_uploads():
            problems.append(f"{store.unfinished_uploads()} multipart uploads were neither finished nor aborted")
        return "\n".join(problems[:20]) if problems else None


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
    name = f"guest::{ours.guest}::passthrough::same-as-{os.path.basename(reference.program)}"
    if not reference.stream or not ours.stream:
        report.add(name, "one of the two did not run")
        return
    problem = "\n".join(difflib.unified_diff(reference.stream.text, ours.stream.text, "reference", "ours", lineterm="", n=0))
    problem += "\n".join(
        difflib.unified_diff(reference.description or [], ours.description or [], "reference", "ours", lineterm="", n=0)
    )
    report.add(name, problem or None)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--binary", help="the ovfs to test; without it only the reference runs")
    parser.add_argument("--reference", default="virtiofsd", help="the virtiofsd to compare passthrough with")
    parser.add_argument("--guest", default="uml,qemu", help="of uml,qemu,libvirt (default: uml,qemu)")
    parser.add_argument("--share", default="passthrough,s3,fs", help="of passthrough,s3,s3s,fs (default: all but s3s)")
    parser.add_argument("--job", default=",".join(JOBS), help="which jobs (default: all)")
    parser.add_argument("--many", type=int, default=1000, help="how many small files (default: 1000)")
    parser.add_argument("--keep", action="store_true", help="keep the working directories")
    options = parser.parse_args()
    for name in ("guest", "share", "job"):
        setattr(options, name, getattr(options, name).split(","))
    return options


def main():
    options = parse_arguments()
    # An end by signal must stop the children too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report()
    machine = None
    binary = options.binary and os.path.abspath(options.binary)
    reference = shutil.which(options.reference)
    for guest in options.guest:
        missing = {"uml": uml.missing, "qemu": qemu.missing, "libvirt": libvirt_guest.missing}[guest]()
        if missing:
            report.add(f"guest::{guest}", missing)
            continue
        if guest != "uml" and machine is None:
            machine = qemu.Machine(CACHE_DIR, print)
        for share in options.share:
            if share == "passthrough":
                programs = [program for program in (reference, binary) if program]
                if not reference:
                    report.add(f"guest::{guest}::passthrough", f"{options.reference} is not installed")
            else:
                programs = [binary] if binary else []
            cases = [Case(guest, program, share, options) for program in programs]
            for case in cases:
                case.run(report, machine)
            if len(cases) == 2:
                compare_twins(report, *cases)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
