"""A User Mode Linux guest: Linux as a process, with the real virtiofs driver, up in two seconds without KVM.

Debian's user-mode-linux has virtio_uml built in and brings fuse.ko and virtiofs.ko. It has one processor, one request
queue of 256, and needs the relay (see relay.py) as well as a daemon started with --tag.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile

import fxsave_only
import process
from relay import Relay
from stream import Stream

HERE = os.path.dirname(os.path.abspath(__file__))
VIRTIO_ID_FS = 26
BOOT_AND_JOB_SECONDS = 300
RESULT_FD = 1


def missing():
    """What this guest needs and the machine lacks, as a sentence; None when all is there."""
    if not shutil.which("linux.uml"):
        return "user-mode-linux is not installed"
    if not _modules():
        return "user-mode-linux has no virtiofs module"
    return None


def _modules():
    found = glob.glob("/usr/lib/uml/modules/*/kernel/fs/fuse/virtiofs.ko")
    return os.path.dirname(sorted(found)[-1]) if found else None


def run(busybox, job_dir, socket_path, tag, work_dir, store=None, seconds=BOOT_AND_JOB_SECONDS):
    """Boots, mounts the share, runs `job_dir`/run, powers off with `busybox`.

    Returns the Stream with output and status.
    """
    relay_path = os.path.join(work_dir, "relay.sock")
    relay = Relay(relay_path, socket_path)
    console = os.path.join(work_dir, "uml-console.log")
    init = os.path.join(work_dir, "uml-init.sh")
    shutil.copy(os.path.join(HERE, "init", "uml.sh"), init)
    os.chmod(init, 0o755)
    # The guest's memory is a file here, mapped executable and shared with the daemon.
    memory_dir = tempfile.mkdtemp(prefix="ovfs-uml-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    read_end, write_end = os.pipe()
    stream = Stream(read_end, store)
    argv = [
        "linux.uml", "mem=512M", f"uml_dir={memory_dir}", f"virtio_uml.device={relay_path}:{VIRTIO_ID_FS}",
        "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}",
        "con=null", f"con1=null,fd:{RESULT_FD}", "con0=null,fd:2", "quiet",
        f"OVFS_JOB={job_dir}", f"OVFS_MODULES={_modules()}", f"OVFS_TAG={tag}", f"OVFS_BUSYBOX={busybox}",
    ]
    if fxsave_only.needed():
        argv = [sys.executable, fxsave_only.__file__, *argv, f"GLIBC_TUNABLES={fxsave_only.NARROW_TUNABLES}"]
    env = {**os.environ, "TMPDIR": memory_dir}
    guest = process.start(argv, console, env=env, cwd=work_dir, stdout=write_end)
    os.close(write_end)
    try:
        guest.wait(seconds)
    except subprocess.TimeoutExpired:
        stream.problems.append(f"the guest was still running after {seconds} s")
    finally:
        process.stop(guest, 2)
        stream.finish()
        relay.close()
        shutil.rmtree(memory_dir, ignore_errors=True)
    if stream.status is None:
        stream.problems.append("the guest ended without a status; its console said:\n" + process.tail(console))
    return stream
