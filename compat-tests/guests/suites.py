#!/usr/bin/env python3
"""Runs the standard suites and ordinary programs in a User Mode Linux guest, on every kind of share.

The jobs print what they check; cases of pjdfstest and of Python's tests that fail must be exactly those listed in
compat-tests/expected/. A passthrough share is served once by virtiofsd and once by ovfs, with equal results. After each
boot all that the guest sees is compared with what the store holds, read by an independent client; a second boot, with a
daemon that knows nothing of the first, checks what programs left behind. The last line is `N passed, N failed`.
"""

import argparse
import glob
import os
import shutil
import signal
import sys
import time
from collections import Counter

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import expected  # noqa: E402
import uml  # noqa: E402
from case import ROOT, SHARES, Case, Report, compare_twins, indent  # noqa: E402

# Each in this order, with those of the second boot: jobs named like them with `-again`.
JOBS = (
    "calls", "locks", "editors", "archive", "sqlite", "git", "compile", "bulk", "stress", "fsx", "pytests", "pjdfstest",
)
AGAIN = ("archive", "sqlite", "git", "compile")
# Where not all jobs run. s3s-fs lists no empty directories, which git, builds and the tests of directories cannot do without,
# and keeps what it knows of an object in a file that bears the object's whole name, so that it has none with a long one.
SHARE_JOBS = {
    "s3s": ("locks", "sqlite", "bulk", "fsx"),
    "s3s-posix": ("locks", "sqlite", "bulk", "fsx"),
}
# And where the quick run leaves some to the full one: moto answers 150 requests a second, and what holds on fs-posix holds on fs.
QUICK_JOBS = {
    "passthrough": ("calls", "locks", "editors", "archive", "git", "stress", "fsx", "pytests", "pjdfstest"),
    "fs": ("calls", "stress", "fsx", "pytests", "pjdfstest"),
    "s3": ("calls", "fsx", "pjdfstest"),
    "s3-posix": ("calls", "archive", "pjdfstest"),
}
DEFAULT_SHARES = "passthrough,fs,fs-posix,s3s,s3,s3-posix"
PROGRAMS = ("fsx", "pjdfstest")
PACKAGES = {
    "git": "git", "rsync": "rsync", "make": "make", "gcc": "gcc", "vi": "vim", "patch": "patch", "perl": "perl",
    "/usr/lib/python3*/test/test_os.py": "libpython3.*-testsuite",
}
QUICK = {
    "ARCHIVE_FILES": 60, "SQLITE_TRANSACTIONS": 40, "GIT_FILES": 100, "COMPILE_FILES": 5, "BULK_FILES": 300,
    "STRESS_OPERATIONS": 1500, "STRESS_SEED": 1, "FSX_STORED_OFTEN": 400, "FSX_STORED_SELDOM": 3000, "PYTHON_ALL": 0,
}
FULL = {
    "ARCHIVE_FILES": 500, "SQLITE_TRANSACTIONS": 1000, "GIT_FILES": 5000, "COMPILE_FILES": 20, "BULK_FILES": 10000,
    "STRESS_OPERATIONS": 20000, "STRESS_SEED": 1, "FSX_STORED_OFTEN": 5000, "FSX_STORED_SELDOM": 100000,
    "PYTHON_ALL": 1,
}
# Longer than the granularity of the guest's clock.
NAPTIME_SECONDS = 0.02
# A boot that takes longer hangs: far beyond what it takes on a machine that does nothing else.
QUICK_SECONDS = 1800
FULL_SECONDS = 4 * 3600


def missing():
    """What these jobs need and the machine lacks, as a sentence; None when all is there."""
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    if lacking:
        return f"not installed (cargo install): {', '.join(lacking)}"
    lacking = [
        package for name, package in PACKAGES.items()
        if not (glob.glob(name) if name.startswith("/") else shutil.which(name))
    ]
    return f"not installed (apt-get install): {', '.join(lacking)}" if lacking else uml.missing()


def rounds(jobs):
    return [jobs, [f"{job}-again" for job in jobs if job in AGAIN]]


def jobs_on(share, options):
    """Which jobs run on a share, in their order: those that were asked for, else those that belong to it."""
    wanted = SHARE_JOBS.get(share.name, JOBS)
    if not options.full:
        wanted = QUICK_JOBS.get(share.name, wanted)
    return [job for job in JOBS if job in (options.job or wanted)]


def verdicts_of(case):
    """Verdicts and details of all suites of all boots of a case, by suite."""
    verdicts, details = {}, {}
    for stream in case.streams:
        for suite, found in stream.results.items():
            verdicts.setdefault(suite, {}).update(found)
            details.setdefault(suite, {}).update(stream.details.get(suite, {}))
    return verdicts, details


def is_complete(suite, options, settings):
    """Whether all cases of a suite run."""
    return bool(settings["PYTHON_ALL"]) if suite == "python" else not options.cases


def report_suites(report, case, options, settings):
    """One result per suite with a list; its numbers; what its failures said goes to a log."""
    verdicts, details = verdicts_of(case)
    for suite, found in sorted(verdicts.items()):
        numbers = Counter(found.values())
        print(f"    {case.name}::{suite}: {len(found)} run, {numbers['ok']} passed, {numbers['FAILED']} failed, "
              f"{numbers['skipped']} skipped")
        said = details.get(suite, {})
        write_log(os.path.join(options.logs, f"{suite}-{case.share.name}-{os.path.basename(case.program)}.log"),
                  found, said)
        if options.accept and os.path.basename(case.program) != os.path.basename(options.reference):
            unexplained = expected.write(suite, case.share.name, found, said)
            if unexplained:
                print(indent("without a reason in reasons.toml:\n" + "\n".join(unexplained)))
        complete = is_complete(suite, options, settings)
        problems = expected.compare(suite, case.share.name, found, said, complete)
        report.add(f"{case.name}::{suite}::expected", problems)


def write_log(path, verdicts, details):
    with open(path, "w") as file:
        for name, verdict in sorted(verdicts.items()):
            file.write(f"{name}: {verdict}\n")
            file.writelines(f"    {line}\n" for line in details.get(name, ()) if verdict == "FAILED")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--binary", required=True, help="the ovfs to test")
    parser.add_argument("--reference", default="virtiofsd", help="the virtiofsd to compare passthrough with")
    parser.add_argument(
        "--share", default=DEFAULT_SHARES, help=f"of {','.join(SHARES)} (default: {DEFAULT_SHARES})"
    )
    parser.add_argument("--job", help=f"of {','.join(JOBS)} (default: those that belong to the share)")
    parser.add_argument("--full", action="store_true", help="in full length: hours, not minutes")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=N",
                        help=f"one size: {', '.join(QUICK)}")
    parser.add_argument("--cases", default="",
                        help="only those cases of pjdfstest whose names contain one of these words")
    parser.add_argument("--accept", action="store_true",
                        help="write the lists of expected failures anew; reasons come from reasons.toml")
    parser.add_argument("--logs", default=os.path.join(ROOT, "target", "logs", "suites"),
                        help="directory for what failing cases said")
    parser.add_argument("--keep", action="store_true", help="keep the working directories")
    options = parser.parse_args()
    options.share = options.share.split(",")
    options.job = options.job and options.job.split(",")
    for name, known in (("share", SHARES), ("job", JOBS)):
        unknown = [word for word in getattr(options, name) or () if word not in known]
        if unknown:
            parser.error(f"unknown {name}: {', '.join(unknown)}")
    return options


def settings_of(options):
    settings = dict(FULL if options.full else QUICK)
    for word in options.set:
        name, _, value = word.partition("=")
        settings[name] = int(value)
    words = " ".join(options.cases.replace(",", " ").split())
    return {**settings, "NAPTIME": NAPTIME_SECONDS, "PJDFSTEST_CASES": f"'{words}'"}


def main():
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report()
    began = time.monotonic()
    lacking = missing()
    if lacking:
        report.add("suites", lacking)
    else:
        os.makedirs(options.logs, exist_ok=True)
        run_all(options, report)
    print(f"    suites: {time.monotonic() - began:.0f} s")
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


def run_all(options, report):
    binary = os.path.abspath(options.binary)
    reference = shutil.which(options.reference)
    settings = settings_of(options)
    programs = [shutil.which(name) for name in PROGRAMS]
    seconds = FULL_SECONDS if options.full else QUICK_SECONDS
    for share in map(SHARES.get, options.share):
        jobs = jobs_on(share, options)
        served_by = [binary]
        if share.passthrough:
            if reference:
                served_by.insert(0, reference)
            else:
                report.add(f"suites::{share.name}", f"{options.reference} is not installed")
        cases = [
            Case("uml", program, share, rounds(jobs), settings, programs=programs, seconds=seconds, keep=options.keep)
            for program in served_by
        ]
        for case in cases:
            case.run(report, None)
            report_suites(report, case, options, settings)
        if len(cases) == 2:
            compare_twins(report, *cases)


if __name__ == "__main__":
    sys.exit(main())
