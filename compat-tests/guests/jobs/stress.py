"""Random operations on a tree of files and directories, each done twice: on the share and in the guest's memory. Either
both succeed or both fail with the same errno, and in the end both trees are equal. What the bucket then holds is
compared from outside, as after every job."""

import errno
import hashlib
import mmap
import os
import random
import shutil
import stat

from guestlib import HARD_LINKS, POSIX, SCRATCH, finish, setting, step

OPERATIONS = setting("STRESS_OPERATIONS")
SEED = setting("STRESS_SEED")
NAMES = [*"abcdefgh", "with space", "Größe", "x" * 120, "50%25 #+&=;?", "-rf", "a.b.c", "~tilde", "(round) [square]"]
FILE_BYTES_MAX = 300_000
HELD_OPEN_MAX = 4
# Different words for one thing; the memory's file system says the one, ours may say the other.
SAME_ERRNO = {errno.EEXIST: errno.ENOTEMPTY}
CHECK_EVERY = 500


class Tree:
    """One of the two."""

    def __init__(self, root):
        self.root = root
        os.mkdir(root)
        # Open files, by a number that both trees share.
        self.held = {}

    def path(self, name):
        return os.path.join(self.root, name)

    # The operations. All names are relative to the root.

    def write(self, name, offset, data, flags):
        fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | flags, 0o644)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def append(self, name, data):
        fd = os.open(self.path(name), os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, data)
            os.write(fd, data[: len(data) // 2])
        finally:
            os.close(fd)

    def mapped(self, name, share, data):
        fd = os.open(self.path(name), os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            if size < len(data):
                return size
            with mmap.mmap(fd, size) as memory:
                at = int((size - len(data)) * share)
                memory[at : at + len(data)] = data
                return hashlib.md5(memory).hexdigest()
        finally:
            os.close(fd)

    def read(self, name, offset, length):
        fd = os.open(self.path(name), os.O_RDONLY)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def truncate(self, name, size):
        os.truncate(self.path(name), size)

    def allocate(self, name, offset, length):
        fd = os.open(self.path(name), os.O_WRONLY)
        try:
            os.posix_fallocate(fd, offset, length)
        finally:
            os.close(fd)

    def exclusive(self, name):
        os.close(os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def unlink(self, name):
        os.unlink(self.path(name))

    def mkdir(self, name):
        os.mkdir(self.path(name), 0o755)

    def rmdir(self, name):
        os.rmdir(self.path(name))

    def rename(self, old, new):
        os.rename(self.path(old), self.path(new))

    def copy(self, old, new):
        shutil.copyfile(self.path(old), self.path(new))

    def copy_range(self, old, new, start, at, length):
        source = os.open(self.path(old), os.O_RDONLY)
        try:
            target = os.open(self.path(new), os.O_WRONLY)
            try:
                return os.copy_file_range(source, target, length, start, at)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def listing(self, name):
        return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in os.scandir(self.path(name)))

    def size(self, name):
        info = os.lstat(self.path(name))
        return stat.S_IFMT(info.st_mode), 0 if stat.S_ISDIR(info.st_mode) else info.st_size

    def sync(self, name):
        fd = os.open(self.path(name), os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def hold(self, number, name):
        self.held[number] = os.open(self.path(name), os.O_RDWR)

    def held_write(self, number, offset, data):
        os.pwrite(self.held[number], data, offset)

    def held_read(self, number, offset, length):
        return os.pread(self.held[number], length, offset)

    def held_size(self, number):
        return os.fstat(self.held[number]).st_size

    def held_truncate(self, number, size):
        os.ftruncate(self.held[number], size)

    def drop(self, number):
        os.close(self.held.pop(number))

    def chmod(self, name, mode):
        os.chmod(self.path(name), mode)

    def chown(self, name, uid, gid):
        os.chown(self.path(name), uid, gid, follow_symlinks=False)

    def times(self, name, seconds):
        os.utime(self.path(name), (seconds, seconds + 0.5), follow_symlinks=False)

    def symlink(self, target, name):
        os.symlink(target, self.path(name))

    def fifo(self, name):
        os.mkfifo(self.path(name))

    def link(self, old, new):
        os.link(self.path(old), self.path(new))

    def set_xattr(self, name, value):
        os.setxattr(self.path(name), "user.stress", value)
        return os.getxattr(self.path(name), "user.stress")

    def entries(self):
        """What the two must have in common: by name, type, size, checksum, and the attributes that are kept."""
        found = {}
        for directory, dir_names, file_names in os.walk(self.root):
            for name in dir_names + file_names:
                path = os.path.join(directory, name)
                info = os.lstat(path)
                entry = [stat.S_IFMT(info.st_mode)]
                if stat.S_ISREG(info.st_mode):
                    with open(path, "rb") as file:
                        entry += [info.st_size, hashlib.file_digest(file, "md5").hexdigest()]
                elif stat.S_ISLNK(info.st_mode):
                    entry.append(os.readlink(path))
                if POSIX:
                    entry += [stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid]
                if HARD_LINKS and stat.S_ISREG(info.st_mode):
                    entry.append(info.st_nlink)
                found[os.path.relpath(path, self.root)] = tuple(entry)
        return found


class Stress:
    """The generator, and what it must remember: no more than the names it has used, some of which are gone."""

    def __init__(self):
        self.random = random.Random(SEED)
        self.ours = Tree("stress")
        self.twin = Tree(os.path.join(SCRATCH, "stress-twin"))
        self.next_held = 0
        self.operations = [
            (14, self.write), (6, self.append), (4, self.mapped), (10, self.read), (5, self.truncate),
            (2, self.allocate), (5, self.exclusive), (8, self.unlink), (7, self.mkdir), (3, self.rmdir),
            (9, self.rename), (3, self.copy), (3, self.copy_range), (6, self.listing), (5, self.size), (3, self.sync),
            (4, self.hold), (4, self.held_write), (4, self.held_read), (2, self.held_truncate), (3, self.drop),
        ]
        if POSIX:
            self.operations += [
                (3, self.chmod), (2, self.chown), (2, self.times), (3, self.symlink), (1, self.fifo),
            ]
        if HARD_LINKS:
            self.operations += [(2, self.link)]
        self.weights = [weight for weight, _ in self.operations]

    def name(self):
        depth = self.random.choice((1, 1, 2, 2, 3))
        return "/".join(self.random.choice(NAMES) for _ in range(depth))

    def known(self):
        """Mostly a name that is there: the twin tells."""
        if self.random.random() < 0.1:
            return self.name()
        found, directory = "", self.twin.root
        while True:
            names = sorted(os.listdir(directory))
            if not names:
                return found or self.name()
            found = os.path.join(found, self.random.choice(names))
            directory = self.twin.path(found)
            if os.path.islink(directory) or not os.path.isdir(directory) or self.random.random() < 0.2:
                return found

    def data(self):
        length = self.random.choice((0, 1, 100, 4096, 5000, 70_000))
        return self.random.randbytes(self.random.randrange(length + 1))

    def offset(self):
        return self.random.choice((0, 0, 1, 4095, self.random.randrange(FILE_BYTES_MAX)))

    def write(self):
        flags = self.random.choice((0, 0, os.O_TRUNC, os.O_SYNC))
        return "write", self.name() if self.random.random() < 0.6 else self.known(), self.offset(), self.data(), flags

    def append(self):
        return "append", self.known(), self.data()

    def mapped(self):
        return "mapped", self.known(), self.random.random(), self.random.randbytes(self.random.randrange(1, 3000))

    def read(self):
        return "read", self.known(), self.offset(), self.random.randrange(1, 100_000)

    def truncate(self):
        return "truncate", self.known(), self.random.choice((0, 1, 4096, self.random.randrange(FILE_BYTES_MAX)))

    def allocate(self):
        return "allocate", self.known(), self.offset(), self.random.randrange(1, 50_000)

    def exclusive(self):
        return "exclusive", self.name()

    def unlink(self):
        return "unlink", self.known()

    def mkdir(self):
        return "mkdir", self.name()

    def rmdir(self):
        return "rmdir", self.known()

    def rename(self):
        return "rename", self.known(), self.known() if self.random.random() < 0.4 else self.name()

    def copy(self):
        old, new = self.known(), self.name()
        # Reading a fifo would wait for ever, and copying a file onto itself is refused by the library.
        return ("copy", old, new) if self.is_file(old) and not os.path.lexists(self.twin.path(new)) else ("size", old)

    def copy_range(self):
        return "copy_range", self.known(), self.known(), self.offset(), self.offset(), self.random.randrange(1, 200_000)

    def listing(self):
        name = self.known()
        return "listing", self.random.choice((name, os.path.dirname(name)))

    def size(self):
        return "size", self.known()

    def sync(self):
        return "sync", self.known()

    def hold(self):
        if len(self.twin.held) >= HELD_OPEN_MAX:
            return self.drop()
        self.next_held += 1
        return "hold", self.next_held, self.known()

    def on_held(self, operation, *arguments):
        if not self.twin.held:
            return self.hold()
        return operation, self.random.choice(sorted(self.twin.held)), *arguments

    def held_write(self):
        return self.on_held("held_write", self.offset(), self.data())

    def held_read(self):
        return self.on_held("held_read", self.offset(), self.random.randrange(1, 100_000))

    def held_truncate(self):
        return self.on_held("held_truncate", self.random.randrange(FILE_BYTES_MAX))

    def drop(self):
        return self.on_held("drop")

    def chmod(self):
        return "chmod", self.known(), self.random.choice((0o600, 0o640, 0o755, 0o700, 0o444))

    def chown(self):
        return "chown", self.known(), self.random.randrange(2000), self.random.randrange(2000)

    def times(self):
        return "times", self.known(), self.random.randrange(1_000_000_000, 1_700_000_000)

    def symlink(self):
        return "symlink", self.random.choice((self.known(), "nowhere", "../a")), self.name()

    def fifo(self):
        return "fifo", self.name()

    def link(self):
        return "link", self.known(), self.name()

    def is_file(self, name):
        return os.path.isfile(self.twin.path(name))

    def blocks(self, operation, arguments):
        """Whether an open of a fifo would wait for the other end."""
        return operation not in ("unlink", "rename", "rmdir", "mkdir", "size", "listing", "chmod", "chown", "times") and any(
            isinstance(argument, str) and stat.S_ISFIFO(mode_of(self.twin.path(argument))) for argument in arguments
        )

    def run(self):
        for number in range(OPERATIONS):
            (_, make), = self.random.choices(self.operations, self.weights)
            operation, *arguments = make()
            if self.blocks(operation, arguments):
                continue
            expected, found = (attempt(tree, operation, arguments) for tree in (self.twin, self.ours))
            if expected != found:
                shown = [a if not isinstance(a, bytes) else f"{len(a)} bytes" for a in arguments]
                return f"operation {number}: {operation} {shown}: expected {brief(expected)}, found {brief(found)}"
            # A file that was opened in one tree alone would make all later operations differ.
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                problem = self.compare()
                if problem:
                    return f"after operation {number}: {problem}"
        for fd in sorted(self.twin.held):
            self.twin.drop(fd)
            self.ours.drop(fd)
        return None

    def compare(self):
        expected, found = self.twin.entries(), self.ours.entries()
        problems = [
            f"{name}: expected {expected.get(name)}, found {found.get(name)}"
            for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)
        ]
        return "\n".join(problems[:10])


def mode_of(path):
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def attempt(tree, operation, arguments):
    try:
        return getattr(tree, operation)(*arguments)
    except OSError as error:
        return "refused", errno.errorcode[SAME_ERRNO.get(error.errno, error.errno)]


def brief(value):
    return f"{len(value)} bytes, MD5 {hashlib.md5(value).hexdigest()}" if isinstance(value, bytes) else value


def directory_times():
    """What is newer than what: an entry made in a directory makes the directory new."""
    os.mkdir("stress-times")
    before = os.stat("stress-times").st_mtime_ns
    with open("stress-times/entry", "w") as file:
        file.write("entry")
    after = os.stat("stress-times").st_mtime_ns
    return None if after >= before else f"mtime went from {before} to {after}"


stress = Stress()
step(f"{OPERATIONS} operations, seed {SEED}", stress.run)
step("both trees are equal", stress.compare)
step("a directory's time", directory_times)
finish()
