#!/usr/bin/env python3
"""Boots a User Mode Linux guest on a daemon's socket, runs the job of this directory in it and prints what it says.

Exits with 1 and the reason on standard error when the guest did not come to its end or the job failed, and with 2 when
this machine cannot boot such a guest.
"""

import argparse
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
sys.path.insert(0, os.path.join(ROOT, "compat-tests", "guests"))

import kernel  # noqa: E402
import uml  # noqa: E402

PROGRAMS = ("fio", "sysbench")


def missing():
    """What this machine lacks, as a sentence; None when all is there."""
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return uml.missing() or (f"not installed: {', '.join(absent)}" if absent else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether this machine can do it")
    parser.add_argument("--socket", help="the daemon's socket")
    parser.add_argument("--tag", help="the tag that the daemon announces")
    parser.add_argument("--seconds", type=int, default=120, help="how long boot and job may take together")
    parser.add_argument("settings", nargs="*", help="NAME=VALUE for the job")
    options = parser.parse_args()
    if absent := missing():
        print(absent, file=sys.stderr)
        return 2
    if options.check:
        return 0
    busybox = kernel.find_busybox(os.path.join(ROOT, "target", "guests"))
    with tempfile.TemporaryDirectory(prefix="ovfs-bench-guest-") as directory:
        job = os.path.join(directory, "job")
        shutil.copytree(HERE, job, ignore=shutil.ignore_patterns("__pycache__"))
        with open(os.path.join(job, "settings"), "w") as file:
            file.write("".join(f"{setting}\n" for setting in options.settings))
        stream = uml.run(busybox, job, options.socket, options.tag, directory, seconds=options.seconds)
        for line in stream.text:
            print(line)
        for problem in stream.problems:
            print(problem, file=sys.stderr)
        if stream.status != 0:
            print(f"the job ended with {stream.status}", file=sys.stderr)
        return 1 if stream.status != 0 or stream.problems else 0


if __name__ == "__main__":
    sys.exit(main())
