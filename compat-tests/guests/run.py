#!/usr/bin/env python3
"""Runs the shell jobs of `jobs/` in real guests, on real shares, and compares what is left with the store.

A passthrough share is served once by virtiofsd and once by ovfs: what the guest prints and what the host finds in the
directory must be equal. A backend is served by ovfs, and every checksum that the guest sees must be the one that an
independent client reads from the store. The last line is `N passed, N failed`; the exit code is 1 when any failed.
"""

import argparse
import os
import shutil
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import libvirt_guest  # noqa: E402
import qemu  # noqa: E402
import uml  # noqa: E402
from case import CACHE_DIR, SHARES, Case, Report, compare_twins  # noqa: E402

JOBS = ("tree", "rewrite", "many", "outside", "posix")
# The jobs that a guest under libvirt runs: there the launcher is under test, not the file system.
LAUNCHER_JOBS = ("tree", "outside")
DEFAULT_SHARES = "passthrough,s3,fs"
BEFORE = "before.txt"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--binary", help="the ovfs to test; without it only the reference runs")
    parser.add_argument("--reference", default="virtiofsd", help="the virtiofsd to compare passthrough with")
    parser.add_argument("--guest", default="uml,qemu", help="of uml,qemu,libvirt (default: uml,qemu)")
    parser.add_argument(
        "--share", default=DEFAULT_SHARES, help=f"of {','.join(SHARES)} (default: {DEFAULT_SHARES})"
    )
    parser.add_argument("--job", default=",".join(JOBS), help="which jobs (default: all)")
    parser.add_argument("--many", type=int, default=1000, help="how many small files (default: 1000)")
    parser.add_argument("--keep", action="store_true", help="keep the working directories")
    options = parser.parse_args()
    for name in ("guest", "share", "job"):
        setattr(options, name, getattr(options, name).split(","))
    unknown = [name for name in options.share if name not in SHARES]
    if unknown:
        parser.error(f"unknown share: {', '.join(unknown)}")
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
        jobs = [job for job in (LAUNCHER_JOBS if guest == "libvirt" else JOBS) if job in options.job]
        for share in map(SHARES.get, options.share):
            if share.passthrough:
                programs = [program for program in (reference, binary) if program]
                if not reference:
                    report.add(f"guest::{guest}::passthrough", f"{options.reference} is not installed")
            else:
                programs = [binary] if binary else []
            cases = [
                Case(guest, program, share, [jobs], {"MANY": options.many}, keep=options.keep) for program in programs
            ]
            for case in cases:
                case.run(report, machine, before=(BEFORE, f"from outside: {BEFORE}\n".encode()))
            if len(cases) == 2:
                compare_twins(report, *cases)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
