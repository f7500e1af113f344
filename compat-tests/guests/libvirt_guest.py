"""The same QEMU guest, started by real libvirt from a domain description that names the daemon in <binary path=…/>.

A libvirt that already runs is used as it is. Otherwise virtlogd and libvirtd are started for the test, without
systemd, and stopped by their ids.
"""

import glob
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from xml.sax.saxutils import escape

import kernel as kernels
import process
from stream import Stream

# Where ovfs looks for the settings of this host.
CONFIG_DIR = "/etc/ovfs/conf.d"
HERE = os.path.dirname(os.path.abspath(__file__))
URI = "qemu:///system"
START_SECONDS = 30
VIRSH_SECONDS = 240
BOOT_AND_JOB_SECONDS = 240


def missing():
    """What this guest needs and the machine lacks, as a sentence; None when all is there."""
    for program in ("libvirtd", "virtlogd", "virsh"):
        if not shutil.which(program):
            return f"{program} is not installed (apt-get install libvirt-daemon-system libvirt-clients)"
    if os.geteuid() != 0:
        return "the system libvirt needs root"
    return None


class Service:
    """libvirtd and virtlogd for the duration of a test, unless libvirt runs already."""

    def __init__(self, work_dir):
        self.children = []
        if virsh("version", check=False).returncode == 0:
            return
        try:
            self.start("virtlogd", work_dir)
            self.start("libvirtd", work_dir)
            process.wait_until(
                lambda: virsh("version", check=False).returncode == 0, START_SECONDS, "libvirtd answers"
            )
        except process.Timeout as error:
            said = process.tail(os.path.join(work_dir, "libvirtd.log"))
            self.close()
            raise RuntimeError(f"{error}; it said:\n{said}") from error

    def start(self, program, work_dir):
        log = os.path.join(work_dir, f"{program}.log")
        pid_file = os.path.join(work_dir, f"{program}.pid")
        self.children.append(process.start([shutil.which(program), "--pid-file", pid_file], log))

    def close(self):
        for child in reversed(self.children):
            process.stop(child)


def virsh(*arguments, check=True):
    # The first domain makes libvirt ask QEMU for all it can do, which takes a minute on a busy machine without KVM.
    return subprocess.run(
        ["virsh", "--quiet", "--connect", URI, *arguments],
        check=check, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=VIRSH_SECONDS,
    )


def destroy(name):
    """Ends the domain, if it is still there; by its process id when libvirt does not."""
    pid_file = f"/run/libvirt/qemu/{name}.pid"
    try:
        with open(pid_file) as file:
            pid = int(file.read())
    except (OSError, ValueError):
        return
    try:
        virsh("destroy", name, check=False)
    except subprocess.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)


class Entry:
    """libvirt passes no options of ours: an entry of [[shares]] for the domain's directory says which store it is."""

    def __init__(self, directory, settings):
        made = [parent for parent in (os.path.dirname(CONFIG_DIR), CONFIG_DIR) if not os.path.isdir(parent)]
        os.makedirs(CONFIG_DIR, exist_ok=True)
        self.made = made
        self.path = os.path.join(CONFIG_DIR, f"test-{os.getpid()}-{os.path.basename(directory)}.toml")
        lines = ["[[shares]]"]
        # A TOML string is a JSON string here: nothing in them needs an escape of its own.
        lines += [f"{key} = {json.dumps(value)}" for key, value in {"shared_dir": directory, **settings}.items()]
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")

    def close(self):
        os.unlink(self.path)
        for directory in reversed(self.made):
            try:
                os.rmdir(directory)
            except OSError:
                # Somebody else has put something there.
                return


def run(machine, binary, directory, tag, job_dir, work_dir, store=None):
    """Creates a domain whose share is `directory` served by `binary`, and runs `job_dir`/run in it."""
    name = f"ovfs-test-{os.getpid()}-{os.path.basename(work_dir)}"
    # The domain runs as another user, who must reach its kernel and write its serial ports.
    domain_dir = tempfile.mkdtemp(prefix="ovfs-libvirt-", dir="/var/tmp")
    os.chmod(domain_dir, 0o755)
    service = Service(work_dir)
    try:
        return _run(machine, binary, directory, tag, job_dir, domain_dir, name, store)
    finally:
        try:
            destroy(name)
        finally:
            service.close()
            shutil.rmtree(domain_dir, ignore_errors=True)


def _run(machine, binary, directory, tag, job_dir, domain_dir, name, store):
    initrd = os.path.join(domain_dir, "initramfs.cpio.gz")
    kernels.initramfs_with_job(machine.kernel, machine.cache_dir, job_dir, initrd)
    kernel = os.path.join(domain_dir, "vmlinuz")
    shutil.copy(machine.kernel.image, kernel)
    result = os.path.join(domain_dir, "result.txt")
    console = os.path.join(domain_dir, "console.txt")
    kvm = machine.accelerator == "kvm"
    with open(os.path.join(HERE, "domain.xml")) as file:
        values = {
            "type": "kvm" if kvm else "qemu", "cpu": "host-passthrough" if kvm else "maximum", "name": name,
            "kernel": kernel, "initrd": initrd, "emulator": shutil.which("qemu-system-x86_64"), "binary": binary,
            "directory": directory, "tag": tag, "console": console, "result": result,
        }
        xml = file.read().format(**{key: escape(value, {"'": "&apos;"}) for key, value in values.items()})
    description = os.path.join(domain_dir, "domain.xml")
    with open(description, "w") as file:
        file.write(xml)
    read_end, write_end = os.pipe()
    stream = Stream(read_end, store)
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(result, write_end, stop), daemon=True)
    follower.start()
    try:
        created = virsh("create", description, check=False)
        if created.returncode != 0:
            logs = sorted(glob.glob(f"/var/log/libvirt/qemu/{name}*"))
            said = "\n".join(f"{log}:\n{process.tail(log, 10)}" for log in logs)
            raise RuntimeError(f"virsh create: {created.stdout}\n{said}")
        process.wait_until(
            lambda: name not in virsh("list", "--name", check=False).stdout.split(), BOOT_AND_JOB_SECONDS, "power-off"
        )
    except process.Timeout as error:
        stream.problems.append(str(error))
    finally:
        stop.set()
        follower.join(10)
        stream.finish()
        for log in glob.glob(f"/var/log/libvirt/qemu/{name}*"):
            if stream.problems or stream.status is None:
                stream.problems.append(f"{log}:\n{process.tail(log, 10)}")
            os.unlink(log)
    if stream.status is None:
        stream.problems.append("the guest ended without a status; its console said:\n" + process.tail(console))
    return stream


def _follow(path, write_end, stop):
    """Copies what is appended to a file into a pipe, until told that no more comes."""
    offset = 0
    with os.fdopen(write_end, "wb", buffering=0) as pipe:
        while True:
            last = stop.is_set()
            try:
                with open(path, "rb") as file:
                    file.seek(offset)
                    data = file.read()
            except FileNotFoundError:
                data = b""
            pipe.write(data)
            offset += len(data)
            if last:
                return
            time.sleep(0.05)
