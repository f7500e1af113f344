#!/usr/bin/env python3
"""The last part of scripts/quickstart: a store, ovfs on it, a guest that mounts it, and what each sees of the other."""

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import process  # noqa: E402
import qemu  # noqa: E402
import stores  # noqa: E402
from daemon import Daemon  # noqa: E402

CACHE_DIR = os.path.join(os.path.dirname(os.path.dirname(HERE)), "target", "guests")
TAG = "bucket"
FROM_HOST = "from-the-host.txt"
TEXT_FROM_HOST = b"This object was put into the store before the guest was started.\n"


def host(text):
    print(f"  host   {text}", flush=True)


def guest(text):
    print(f"  guest  {text}", flush=True)


def write_job(directory, look):
    """The job, and the words above the interactive shell: `look` is a command that lists the store on the host."""
    os.makedirs(directory)
    with open(os.path.join(HERE, "jobs", "demo.sh")) as source, open(os.path.join(directory, "run"), "w") as run:
        run.write(source.read())
    with open(os.path.join(directory, "welcome"), "w") as file:
        file.write(f"""
The store is mounted here: what you write is there when the file is closed. From another terminal of the host:
    {look}
`exit` ends the guest in good order, Ctrl-A X ends QEMU at once.

""")


def show(options, work_dir):
    """Returns whether both directions held."""
    machine = qemu.Machine(CACHE_DIR, host)
    if options.store == "s3":
        store = stores.moto(work_dir)
        look = f"curl -s '{store.server.endpoint}/{store.name}?list-type=2'"
        host(f"S3 server on {store.server.endpoint}, bucket {store.name}")
    else:
        store = stores.Directory(os.path.join(work_dir, "store"))
        look = f"ls -lR {store.path}"
        host(f"the store is the directory {store.path}")
    daemon = None
    try:
        store.put(FROM_HOST, TEXT_FROM_HOST)
        host(f"put {FROM_HOST} into the store")
        argv = [options.binary, "--backend", store.backend_url()]
        host(f"starting: {shlex.join(argv)} --socket-path …")
        daemon = Daemon(argv, work_dir, name="ovfs", env=store.environment())
        host("booting the guest; its words are marked")
        job_dir = os.path.join(work_dir, "job")
        write_job(job_dir, look)
        stream = machine.run(
            job_dir, daemon.socket_path, TAG, work_dir, store, echo=guest, interactive=options.interactive
        )
        code = daemon.wait_end()
        problems = stream.problems
        if stream.status not in (0, None):
            problems.append(f"the guest's job ended with {stream.status}")
        if code != 0:
            problems.append(f"ovfs ended with {code}")
        host("the guest is off; the store, read from outside, holds:")
        held = store.sums()
        for name, md5 in sorted(held.items()):
            print(f"           {md5}  {name}")
        if not options.interactive:
            # With a shell in between, the guest's list is from before it.
            problems += [
                f"{name}: the guest sees {md5}, the store holds {held.get(name)}"
                for name, md5 in stream.sums.items() if held.get(name) != md5
            ]
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        if problems:
            print(f"ovfs's log ends:\n{process.tail(daemon.log_path)}", file=sys.stderr)
        return not problems
    finally:
        if daemon:
            daemon.stop()
        store.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--store", choices=("s3", "fs"), default="s3")
    parser.add_argument("--interactive", action="store_true")
    options = parser.parse_args()
    # An end by signal must stop the children too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work_dir = tempfile.mkdtemp(prefix="ovfs-quickstart-")
    try:
        ok = show(options, work_dir)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    if not options.interactive:
        print("Done: the guest and the store agree." if ok else "FAILED: see above.")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
