"""What programs ask of open files: direct and synchronous writes, maps, holes, allocation, files without a name left.
Each is compared with what the same calls give on a file in the guest's memory."""

import ctypes
import errno
import fcntl
import mmap
import os
import stat

from guestlib import HARD_LINKS, KIND, SCRATCH, finish, same, step

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)
DIRECTORIES = (SCRATCH, "calls")
PAGE = 4096


def fill(length, seed=7):
    return bytes((seed * n + n // 251) & 0xFF for n in range(length))


def content(path):
    with open(path, "rb") as file:
        return file.read()


def refused(call, *arguments):
    """The name of the errno that a call ends with."""
    try:
        call(*arguments)
    except OSError as error:
        # One number, two names.
        return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode[error.errno]
    return "accepted"


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def rename2(old, new, flags):
    if libc.renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def both(name, action):
    """The action, in the guest's memory and on the share, must give the same."""

    def compare():
        expected, found = (action(os.path.join(directory, name.replace(" ", "-"))) for directory in DIRECTORIES)
        return None if expected == found else f"expected {short(expected)}, found {short(found)}"

    step(name, compare)


def short(value):
    text = repr(value)
    return text if len(text) < 300 else f"{text[:300]}... ({len(text)} characters)"


def direct(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_DIRECT", 0) * path.startswith("calls"), 0o644)
    page = mmap.mmap(-1, 4 * PAGE)
    page[:] = fill(4 * PAGE)
    written = [os.pwrite(fd, page, offset) for offset in (0, 4 * PAGE, 2 * PAGE, 64 * PAGE)]
    back = mmap.mmap(-1, 8 * PAGE)
    read = os.preadv(fd, [back], PAGE)
    found = bytes(back)
    os.close(fd)
    return written, read, found, content(path)


def direct_and_cached(path):
    """A direct write is seen by a cached read, and a cached write by a direct read."""
    with open(path, "wb") as file:
        file.write(fill(2 * PAGE))
    cached = os.open(path, os.O_RDWR)
    before = os.pread(cached, 2 * PAGE, 0)
    raw = os.open(path, os.O_RDWR | os.O_DIRECT * path.startswith("calls"))
    page = mmap.mmap(-1, PAGE)
    page[:] = b"d" * PAGE
    os.pwrite(raw, page, PAGE)
    middle = os.pread(cached, 2 * PAGE, 0)
    os.pwrite(cached, b"c" * 100, 0)
    os.preadv(raw, [page], 0)
    found = bytes(page)
    os.close(raw)
    os.close(cached)
    return before, middle, found, content(path)


def synchronous(path):
    found = []
    for flag in (os.O_SYNC, os.O_DSYNC):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o644)
        found.append(os.write(fd, fill(10_000, flag & 0xFF)))
        os.close(fd)
        found.append(content(path))
    return found


def map_shared(path):
    with open(path, "wb+") as file:
        file.write(fill(3 * PAGE + 100))
        file.flush()
        with mmap.mmap(file.fileno(), 0) as memory:
            memory[PAGE - 5 : PAGE + 5] = b"0123456789"
            seen = os.pread(file.fileno(), 20, PAGE - 10)
            os.pwrite(file.fileno(), b"written", 2 * PAGE)
            mapped = memory[2 * PAGE : 2 * PAGE + 7]
            memory.flush()
            memory[0] = 255
    return seen, mapped, content(path)


def map_after_close(path):
    with open(path, "wb+") as file:
        file.write(fill(2 * PAGE))
        file.flush()
        memory = mmap.mmap(file.fileno(), 0)
    memory[100:200] = b"m" * 100
    os.unlink(path)
    memory[PAGE : PAGE + 3] = b"end"
    found = bytes(memory)
    memory.close()
    return found, os.path.exists(path)


def map_private(path):
    with open(path, "wb+") as file:
        file.write(fill(2 * PAGE))
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
            memory[0:10] = b"not stored"
            found = bytes(memory[0:20])
    return found, content(path)


def holes(path):
    with open(path, "wb") as file:
        file.write(b"begin")
        file.seek(1_000_000)
        file.write(b"end")
        file.truncate(2_000_000)
    with open(path, "rb") as file:
        fd = file.fileno()
        # Where the holes are is the file system's affair; that data is data, and the end the end, is not.
        data = [os.lseek(fd, at, os.SEEK_DATA) <= at for at in (0, 1_000_000)]
        hole = os.lseek(fd, 1_000_000, os.SEEK_HOLE) >= 1_000_003
        past = [refused(os.lseek, fd, 2_000_000, how) for how in (os.SEEK_DATA, os.SEEK_HOLE)]
    return data, hole, past, content(path)


def allocation(path):
    found = []
    with open(path, "wb+") as file:
        file.write(fill(20_000))
        file.flush()
        for mode, offset, length in (
            (0, 10_000, 5_000), (0, 18_000, 12_000), (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5_000, 8_000),
            (FALLOC_FL_KEEP_SIZE, 29_000, 5_000),
        ):
            found.append(refused(fallocate, file.fileno(), mode, offset, length))
            found.append(os.fstat(file.fileno()).st_size)
        found.append(refused(fallocate, file.fileno(), 0, 0, 0))
    return found, content(path)


def zero_range(path):
    """Not every file system has it: where it is, it must be right."""
    with open(path, "wb+") as file:
        file.write(fill(20_000))
        file.flush()
        said = refused(fallocate, file.fileno(), FALLOC_FL_ZERO_RANGE, 3_000, 4_000)
        if said == "EOPNOTSUPP":
            os.pwrite(file.fileno(), bytes(4_000), 3_000)
            said = "accepted"
    return said, content(path)


def copy_range(path):
    with open(path, "wb") as file:
        file.write(fill(300_000))
    found = []
    with open(path, "rb") as source, open(f"{path}.copy", "wb+") as target:
        for start, at, length in ((0, 0, 300_000), (100, 250_001, 100_000), (299_990, 10, 100)):
            found.append(os.copy_file_range(source.fileno(), target.fileno(), length, start, at))
    return found, content(f"{path}.copy")


def appending(path):
    """Two descriptors with O_APPEND never write over each other."""
    fds = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for _ in range(2)]
    for number in range(100):
        os.write(fds[number % 2], f"line {number}\n".encode())
    os.lseek(fds[0], 0, os.SEEK_SET)
    os.write(fds[0], b"last\n")
    for fd in fds:
        os.close(fd)
    return content(path)


def open_modes(path):
    found = [refused(os.open, path, os.O_RDONLY)]
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    found.append(refused(os.open, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with open(path, "wb") as file:
        file.write(b"something")
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    found.append(os.stat(path).st_size)
    found.append(refused(os.open, path, os.O_RDONLY | os.O_DIRECTORY))
    found.append(refused(os.open, f"{path}/below", os.O_RDONLY))
    found.append(refused(os.open, os.path.dirname(path), os.O_WRONLY))
    found.append(refused(os.open, "x" * 256, os.O_RDONLY | os.O_CREAT))
    fd = os.open(path, os.O_RDONLY)
    found += [refused(os.write, fd, b"x"), refused(os.ftruncate, fd, 0)]
    os.close(fd)
    fd = os.open(path, os.O_WRONLY)
    found.append(refused(os.read, fd, 1))
    os.close(fd)
    fd = os.open(path, os.O_PATH)
    found += [refused(os.read, fd, 1), stat.S_ISREG(os.fstat(fd).st_mode)]
    os.close(fd)
    return found


def unlinked(path):
    """A file without a name is a file until its last close."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, fill(100_000))
    os.unlink(path)
    found = [os.path.exists(path), os.pread(fd, 50, 99_980), os.fstat(fd).st_nlink]
    os.pwrite(fd, b"changed", 10)
    os.ftruncate(fd, 50)
    os.lseek(fd, 0, os.SEEK_END)
    os.write(fd, b"appended")
    os.fsync(fd)
    # A new file of the same name is another one.
    with open(path, "wb") as file:
        file.write(b"new")
    found += [os.pread(fd, 1000, 0), content(path)]
    os.close(fd)
    return found, content(path)


def replaced(path):
    """Both sides of a rename over an open file keep what they had."""
    for suffix in ("", ".new"):
        with open(path + suffix, "wb") as file:
            file.write(fill(10_000, 3 + len(suffix)))
    old = os.open(path, os.O_RDWR)
    new = os.open(f"{path}.new", os.O_RDWR)
    os.rename(f"{path}.new", path)
    os.pwrite(new, b"to the new one", 5)
    os.pwrite(old, b"to nobody", 5)
    found = os.pread(old, 100, 0), os.pread(new, 100, 0)
    os.close(old)
    os.close(new)
    return found, content(path)


def rename_flags(path):
    for suffix in ("a", "b"):
        with open(path + suffix, "w") as file:
            file.write(suffix)
    found = [refused(rename2, f"{path}a", f"{path}b", RENAME_NOREPLACE)]
    rename2(f"{path}a", f"{path}c", RENAME_NOREPLACE)
    return found, content(f"{path}c"), content(f"{path}b"), os.path.exists(f"{path}a")


def exchange():
    """What a store without it says must be an errno that programs know as `not here`."""
    for name in ("one", "two"):
        with open(f"calls/{name}", "w") as file:
            file.write(name)
    said = refused(rename2, "calls/one", "calls/two", RENAME_EXCHANGE)
    if said == "accepted":
        return None if content("calls/one") == b"two" and content("calls/two") == b"one" else "accepted and not done"
    return None if said in ("EINVAL", "ENOSYS", "EOPNOTSUPP") and KIND != "passthrough" else said


def directories(path):
    os.mkdir(path)
    found = [refused(os.mkdir, path), refused(os.unlink, path), refused(os.rmdir, f"{path}/nothing")]
    for number in range(300):
        with open(f"{path}/{number:03}", "w"):
            pass
    seen = []
    with os.scandir(path) as entries:
        for entry in entries:
            seen.append(entry.name)
            # What is removed while the directory is read must not hide what is left.
            if int(entry.name) % 3 == 0:
                os.unlink(f"{path}/{entry.name}")
    found += [sorted(seen) == [f"{number:03}" for number in range(300)], sorted(os.listdir(path))]
    found += [refused(os.rmdir, path), refused(os.rename, path, f"{path}/000/below"), refused(os.rename, path, f"{path}/x")]
    os.mkdir(f"{path}-empty")
    os.rename(path, f"{path}-empty")
    found += [len(os.listdir(f"{path}-empty")), os.path.exists(path)]
    os.mkdir(path)
    found.append(refused(os.rename, path, f"{path}-empty") in ("ENOTEMPTY", "EEXIST"))
    with open(f"{path}-file", "w"):
        pass
    found += [refused(os.rename, f"{path}-file", path), refused(os.rename, path, f"{path}-file")]
    return found


def removed_directory(path):
    """A directory that is gone is empty, and takes no new entries."""
    os.mkdir(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(path)
    found = os.listdir(fd), refused(os.open, "new", os.O_CREAT | os.O_WRONLY, 0o644)
    said = refused(lambda: os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd)))
    os.close(fd)
    if found[1] == "accepted":
        os.unlink("new")
    return found[0], said


def vectors(path):
    with open(path, "wb+") as file:
        written = os.pwritev(file.fileno(), [fill(1000), b"", fill(5000, 3)], 77)
        buffers = [bytearray(10), bytearray(7000)]
        read = os.preadv(file.fileno(), buffers, 70)
    return written, read, [bytes(buffer) for buffer in buffers], content(path)


def large_offsets(path):
    """Far beyond 4 GiB. The file is cut before it is closed: no store must take the zeros between."""
    with open(path, "wb+") as file:
        os.ftruncate(file.fileno(), 5 << 30)
        size = os.fstat(file.fileno()).st_size
        found = os.pread(file.fileno(), 10, (5 << 30) - 5)
        os.ftruncate(file.fileno(), 10)
    return size, found, content(path)


def times():
    """utime is answered with what was set, to the second at least, as long as the file is known."""
    with open("calls/times", "w") as file:
        file.write("times")
    os.utime("calls/times", (1_500_000_000, 1_400_000_000))
    info = os.stat("calls/times")
    return None if int(info.st_mtime) == 1_400_000_000 else info.st_mtime


def hard_links():
    with open("calls/linked", "w") as file:
        file.write("linked")
    said = refused(os.link, "calls/linked", "calls/link")
    return None if said == ("accepted" if HARD_LINKS else "EPERM") else said


def leases():
    """Nothing hangs on what a network file system refuses."""
    with open("calls/times") as file:
        refused(fcntl.fcntl, file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        refused(fcntl.fcntl, file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


os.mkdir("calls")
for name, action in (
    ("O_DIRECT", direct), ("O_DIRECT beside cached", direct_and_cached), ("O_SYNC and O_DSYNC", synchronous),
    ("mmap shared", map_shared), ("mmap after close and unlink", map_after_close), ("mmap private", map_private),
    ("holes", holes), ("fallocate", allocation), ("fallocate zero range", zero_range), ("copy_file_range", copy_range),
    ("O_APPEND twice", appending), ("open modes", open_modes), ("unlinked and open", unlinked),
    ("renamed over and open", replaced), ("rename flags", rename_flags), ("directories", directories),
    ("a removed directory", removed_directory), ("vectors", vectors), ("large offsets", large_offsets),
):
    both(name, action)
step("RENAME_EXCHANGE", exchange)
step("utime", times)
step("link", hard_links)
step("leases", leases)
finish()
