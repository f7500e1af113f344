"""Finds a kernel for the QEMU guest, and packs an initramfs for it from busybox and the kernel's own modules.

Nothing on the machine is changed: when no installed kernel fits, Debian's is downloaded and unpacked under target/.
"""

import gzip
import hashlib
import lzma
import os
import re
import stat
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
BUSYBOX = "/bin/busybox"
WANTED_MODULES = ("virtio_pci", "virtiofs")
PACKAGE = "linux-image-amd64"


class KernelError(Exception):
    """No kernel to boot, or one that cannot be read."""


class Kernel:
    """A bootable image and the modules that belong to it."""

    def __init__(self, image, release, modules_dir):
        self.image = image
        self.release = release
        self.modules_dir = modules_dir

    def module_files(self):
        """The files of the wanted modules and of all they need, in the order in which they must be loaded."""
        by_name = {}
        for directory, _, names in os.walk(self.modules_dir):
            for name in names:
                base, dot, _ = name.partition(".ko")
                if dot:
                    by_name[base.replace("-", "_")] = os.path.join(directory, name)
        order = []

        def visit(name):
            path = by_name.get(name)
            # Not a file: built into the kernel.
            if path is None or path in order:
                return
            for needed in depends(read_module(path)):
                visit(needed)
            order.append(path)

        for name in WANTED_MODULES:
            visit(name)
        return order


def read_module(path):
    """The module's bytes, uncompressed."""
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dcq", path], check=True, stdout=subprocess.PIPE).stdout
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(os.path.splitext(path)[1], open)
    with opener(path, "rb") as file:
        return file.read()


def depends(module):
    """Names of the modules that a module needs, from its .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found.group(1).decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def find(cache_dir):
    """An installed kernel with virtiofs, else one unpacked under `cache_dir`, else Debian's, fetched there."""
    for root in ("/", cache_dir):
        kernel = find_under(root)
        if kernel:
            return kernel
    fetch(cache_dir)
    kernel = find_under(cache_dir)
    if not kernel:
        raise KernelError(f"{PACKAGE} holds no kernel with a virtiofs module")
    return kernel


def find_under(root):
    boot = os.path.join(root, "boot")
    if not os.path.isdir(boot):
        return None
    for name in sorted(os.listdir(boot), reverse=True):
        image = os.path.join(boot, name)
        release = name.removeprefix("vmlinuz-")
        modules_dir = os.path.join(root, "lib/modules", release)
        if release == name or not os.path.isdir(modules_dir) or not os.access(image, os.R_OK):
            continue
        kernel = Kernel(image, release, modules_dir)
        if any(os.path.basename(path).startswith("virtiofs.ko") for path in kernel.module_files()):
            return kernel
    return None


def fetch(cache_dir):
    """Downloads the distribution's kernel package and unpacks it under `cache_dir`, without installing it."""
    os.makedirs(cache_dir, exist_ok=True)
    try:
        shown = subprocess.run(
            ["apt-cache", "depends", "--important", PACKAGE], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        real = re.search(r"Depends: (linux-image-\S+)", shown)
        if not real:
            raise KernelError(f"no kernel in /boot, and apt knows no {PACKAGE}")
        subprocess.run(["apt-get", "download", "-qq", real.group(1)], check=True, cwd=cache_dir)
        for name in os.listdir(cache_dir):
            if name.endswith(".deb"):
                subprocess.run(["dpkg-deb", "-x", name, "."], check=True, cwd=cache_dir)
                os.unlink(os.path.join(cache_dir, name))
    except (OSError, subprocess.CalledProcessError) as error:
        raise KernelError(f"no kernel with virtiofs in /boot, and none could be downloaded: {error}") from error


class Archive:
    """A cpio archive in the "newc" format that the kernel unpacks (Documentation/driver-api/early-userspace)."""

    def __init__(self):
        self.parts = []
        self.inode = 0

    def add(self, name, mode, data=b"", device=(0, 0)):
        self.inode += 1
        encoded = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self.parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]

    def directory(self, name):
        self.add(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        self.add(name, stat.S_IFREG | mode, data)

    def finish(self):
        self.add("TRAILER!!!", 0)
        return b"".join(self.parts)


def base_initramfs(kernel, cache_dir):
    """Packs init, busybox and the modules once per kernel. Returns the archive's path."""
    with open(os.path.join(HERE, "init", "qemu.sh"), "rb") as file:
        init = file.read()
    with open(BUSYBOX, "rb") as file:
        busybox = file.read()
    files = kernel.module_files()
    key = hashlib.md5(init + busybox + "\n".join(files).encode()).hexdigest()[:12]
    path = os.path.join(cache_dir, f"initramfs-{kernel.release}-{key}.cpio.gz")
    if os.path.exists(path):
        return path
    archive = Archive()
    for name in ("bin", "modules", "dev"):
        archive.directory(name)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.file("init", init, 0o755)
    archive.file("bin/busybox", busybox, 0o755)
    order = []
    for module in files:
        name = os.path.basename(module).partition(".ko")[0] + ".ko"
        archive.file(f"modules/{name}", read_module(module))
        order.append(name)
    archive.file("modules/order", "".join(f"{name}\n" for name in order).encode())
    os.makedirs(cache_dir, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(gzip.compress(archive.finish(), 1))
    os.replace(temporary, path)
    return path


def initramfs_with_job(kernel, cache_dir, job_dir, path):
    """Writes to `path` the base archive followed by one that holds `job_dir` as /job."""
    archive = Archive()
    archive.directory("job")
    for name in sorted(os.listdir(job_dir)):
        with open(os.path.join(job_dir, name), "rb") as file:
            archive.file(f"job/{name}", file.read())
    with open(base_initramfs(kernel, cache_dir), "rb") as base, open(path, "wb") as out:
        out.write(base.read())
        out.write(gzip.compress(archive.finish(), 1))
