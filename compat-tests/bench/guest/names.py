"""Metadata as mdtest does it: one program makes many small files, looks at them, lists them and removes them."""

import os
import time

FILES = int(os.environ["FILES"])
CONTENT = b"0123456789abcdef" * 64
DIRECTORY = "names"


def forget():
    """What the guest's kernel has cached of the share."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def figure(name, work, count=FILES):
    began = time.monotonic()
    work()
    print(f"figure {count / (time.monotonic() - began):.1f} ops/s {name}", flush=True)


def path(number):
    return os.path.join(DIRECTORY, f"file-{number:06}")


def create():
    for number in range(FILES):
        with open(path(number), "wb") as file:
            file.write(CONTENT)


def stat():
    for number in range(FILES):
        if os.stat(path(number)).st_size != len(CONTENT):
            raise SystemExit(f"{path(number)}: wrong size")


def read():
    for number in range(FILES):
        with open(path(number), "rb") as file:
            if file.read() != CONTENT:
                raise SystemExit(f"{path(number)}: wrong data")


def listing():
    with os.scandir(DIRECTORY) as entries:
        found = sum(entry.stat().st_size == len(CONTENT) for entry in entries)
    if found != FILES:
        raise SystemExit(f"{found} files are listed instead of {FILES}")


def remove():
    for number in range(FILES):
        os.unlink(path(number))
    os.rmdir(DIRECTORY)


os.mkdir(DIRECTORY)
figure("metadata: create files of 1 KiB", create)
forget()
figure("metadata: stat", stat)
forget()
figure("metadata: readdir + stat", listing)
forget()
figure("metadata: open, read, close", read)
figure("metadata: unlink", remove)
