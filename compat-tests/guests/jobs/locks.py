"""flock, POSIX locks and open-file-description locks between two processes of one guest."""

import errno
import fcntl
import os
import struct
import subprocess
import sys
import time

from guestlib import finish, same, step

F_OFD_SETLK, F_OFD_SETLKW = 37, 38
CHILD = """
import errno, fcntl, os, struct, sys
how, mode, start, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
fd = os.open("locks/file", os.O_RDWR)
try:
    if how == "flock":
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    elif how == "ofd":
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", mode, 0, start, length, 0))
    else:
        fcntl.lockf(fd, mode | fcntl.LOCK_NB, length, start)
    print("granted")
except OSError as error:
    print("refused" if error.errno in (errno.EAGAIN, errno.EACCES) else error)
"""


def other(how, mode, start=0, length=0):
    """What another process is told that asks for a lock."""
    argv = [sys.executable, "-c", CHILD, how, str(mode), str(start), str(length)]
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True).stdout.strip()


def flock():
    with open("locks/file", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        same("flock: shared, beside a shared one", "granted", other("flock", fcntl.LOCK_SH))
        same("flock: exclusive, beside a shared one", "refused", other("flock", fcntl.LOCK_EX))
        fcntl.flock(file, fcntl.LOCK_EX)
        same("flock: shared, beside an exclusive one", "refused", other("flock", fcntl.LOCK_SH))
        fcntl.flock(file, fcntl.LOCK_UN)
        same("flock: after the release", "granted", other("flock", fcntl.LOCK_EX))
        fcntl.flock(file, fcntl.LOCK_EX)
    same("flock: after the close", "granted", other("flock", fcntl.LOCK_EX))


def posix():
    with open("locks/file", "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 100, 1000)
        same("lockf: the same range", "refused", other("lockf", fcntl.LOCK_EX, 1000, 100))
        same("lockf: one byte of it, shared", "refused", other("lockf", fcntl.LOCK_SH, 1099, 1))
        same("lockf: the byte before", "granted", other("lockf", fcntl.LOCK_EX, 999, 1))
        same("lockf: from the byte after to the end", "granted", other("lockf", fcntl.LOCK_EX, 1100, 0))
        fcntl.lockf(file, fcntl.LOCK_UN, 50, 1000)
        same("lockf: the released half", "granted", other("lockf", fcntl.LOCK_EX, 1000, 50))
        same("lockf: the held half", "refused", other("lockf", fcntl.LOCK_EX, 1050, 50))
        # Any close of the file by the process ends its locks: a rule of POSIX that programs rely on, or suffer from.
        open("locks/file").close()
        same("lockf: after a close of another descriptor", "granted", other("lockf", fcntl.LOCK_EX, 1050, 50))


def ofd():
    with open("locks/file", "r+") as file:
        fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 10, 10, 0))
        same("OFD: the same range", "refused", other("ofd", fcntl.F_WRLCK, 10, 10))
        same("OFD: against a POSIX lock", "refused", other("lockf", fcntl.LOCK_EX, 15, 1))
        open("locks/file").close()
        same("OFD: after a close of another descriptor", "refused", other("ofd", fcntl.F_WRLCK, 10, 10))
    same("OFD: after the close", "granted", other("ofd", fcntl.F_WRLCK, 10, 10))


def waiting(how):
    """A child waits for a lock that we hold, and gets it when we release it."""
    with open("locks/file", "r+") as file:
        take = fcntl.flock if how == "flock" else fcntl.lockf
        take(file, fcntl.LOCK_EX)
        child = subprocess.Popen(
            [sys.executable, "-c", f"import fcntl; f = open('locks/file', 'r+'); fcntl.{how}(f, fcntl.LOCK_EX)"]
        )
        time.sleep(0.5)
        if child.poll() is not None:
            return f"did not wait, ended with {child.returncode}"
        take(file, fcntl.LOCK_UN)
        code = child.wait(20)
        return None if code == 0 else f"ended with {code}"


def deadlock():
    """Two processes that wait for each other: one is told so (POSIX locks alone know)."""
    child = (
        "import fcntl, sys; f = open('locks/file', 'r+'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 1); print('held', flush=True);"
        "fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)"
    )
    with open("locks/file", "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
        with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            time.sleep(0.5)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX, 1, 1)
                found = "granted"
            except OSError as error:
                found = "EDEADLK" if error.errno == errno.EDEADLK else errno.errorcode[error.errno]
            fcntl.lockf(file, fcntl.LOCK_UN)
            process.wait(20)
    return None if found == "EDEADLK" else found


def counting():
    """Two processes add to one number under a lock; none of the additions may be lost."""
    with open("locks/number", "w") as file:
        file.write("0")
    child = """
import fcntl
for _ in range(50):
    with open("locks/number", "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        number = int(file.read())
        file.seek(0)
        file.write(str(number + 1))
        file.flush()
"""
    children = [subprocess.Popen([sys.executable, "-c", child]) for _ in range(2)]
    codes = [child.wait(120) for child in children]
    with open("locks/number") as file:
        found = file.read()
    return None if codes == [0, 0] and found == "100" else f"exit codes {codes}, number {found}"


os.mkdir("locks")
with open("locks/file", "w") as file:
    file.write("content")
flock()
posix()
ofd()
step("flock: waits for the release", waiting, "flock")
step("lockf: waits for the release", waiting, "lockf")
step("lockf: a deadlock is found", deadlock)
step("two processes, one number", counting)
step("the flock program", lambda: subprocess.run(["flock", "-n", "locks/file", "true"], check=True) and None)
finish()
