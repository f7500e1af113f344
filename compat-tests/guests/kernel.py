"""Finds a kernel for the QEMU guest, and packs an initramfs for it from busybox and the kernel's own modules.

Nothing on the machine is changed: when no installed kernel or static busybox is there, Debian's is downloaded and what
is needed of it is unpacked under target/.
"""

import gzip
import hashlib
import lzma
import os
import re
import stat
import struct
import subprocess
import tempfile

PT_INTERP = 3
HERE = os.path.dirname(os.path.abspath(__file__))
WANTED_MODULES = ("virtio_pci", "virtiofs")
KERNEL_PACKAGE = "linux-image-amd64"
KERNEL_MEMBERS = ("*/boot/vmlinuz-*", "*/lib/modules/*/kernel/drivers/virtio/*", "*/lib/modules/*/kernel/fs/fuse/*")
BUSYBOX_PACKAGE = "busybox-static"
BUSYBOX_MEMBERS = ("*/bin/busybox",)


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
    fetch(dependency_of(KERNEL_PACKAGE), KERNEL_MEMBERS, cache_dir)
    kernel = find_under(cache_dir)
    if not kernel:
        raise KernelError(f"{KERNEL_PACKAGE} holds no kernel with a virtiofs module")
    return kernel


def find_under(root):
    boot = os.path.join(root, "boot")
    if not os.path.isdir(boot):
        return None
    for name in sorted(os.listdir(boot), reverse=True):
        image = os.path.join(boot, name)
        release = name.removeprefix("vmlinuz-")
        if release == name or not os.access(image, os.R_OK):
            continue
        for modules in ("lib/modules", "usr/lib/modules"):
            kernel = Kernel(image, release, os.path.join(root, modules, release))
            if any(os.path.basename(path).startswith("virtiofs.ko") for path in kernel.module_files()):
                return kernel
    return None


def find_busybox(cache_dir):
    """A busybox that needs no library: the installed one, else Debian's, fetched under `cache_dir`."""
    paths = ["/bin/busybox", os.path.join(cache_dir, "bin/busybox"), os.path.join(cache_dir, "usr/bin/busybox")]
    for attempt in range(2):
        for path in paths:
            if os.path.exists(path) and is_static(path):
                return path
        if attempt == 0:
            fetch(BUSYBOX_PACKAGE, BUSYBOX_MEMBERS, cache_dir)
    raise KernelError(f"{BUSYBOX_PACKAGE} holds no static busybox")


def is_static(path):
    """Whether an ELF program names no interpreter (a static one has no PT_INTERP segment)."""
    with open(path, "rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:5] != b"\x7fELF\x02":
            return False
        offset, = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        segments = file.read(size * count)
    return all(struct.unpack_from("<I", segments, n * size)[0] != PT_INTERP for n in range(count))


def dependency_of(package):
    """The versioned package behind a meta-package."""
    try:
        shown = subprocess.run(
            ["apt-cache", "depends", "--important", package], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise KernelError(f"no kernel with virtiofs in /boot, and apt-cache fails: {error}") from error
    real = re.search(r"Depends: (linux-image-\S+)", shown)
    if not real:
        raise KernelError(f"no kernel with virtiofs in /boot, and apt knows no {package} (apt-get update?)")
    return real.group(1)


def fetch(package, members, cache_dir):
    """Downloads a Debian package and unpacks some of its files under `cache_dir`, without installing it."""
    with tempfile.TemporaryDirectory(prefix="ovfs-package-") as directory:
        # apt fetches as a user of its own, who must be able to write here.
        os.chmod(directory, 0o777)
        done = subprocess.run(
            ["apt-get", "download", "-qq", package], cwd=directory, stderr=subprocess.STDOUT, stdout=subprocess.PIPE,
            text=True,
        )
        files = [name for name in os.listdir(directory) if name.endswith(".deb")]
        if done.returncode != 0 or not files:
            raise KernelError(f"{package} is not installed and cannot be downloaded:\n{done.stdout}")
        os.makedirs(cache_dir, exist_ok=True)
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", os.path.join(directory, files[0])], stdout=subprocess.PIPE
        ) as unpacked:
            subprocess.run(
                ["tar", "-x", "-C", cache_dir, "--wildcards", *members], check=True, stdin=unpacked.stdout
            )


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
    with open(find_busybox(cache_dir), "rb") as file:
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
