"""A QEMU guest: a stock Debian kernel, an initramfs of busybox and modules, no disk, no graphics, no questions.

Processor acceleration is used only where a trial boot shows that it works: the device file proves nothing.
"""

import os
import shutil
import subprocess

import kernel as kernels
import process
from stream import Stream

QEMU = "qemu-system-x86_64"
TRIAL_SECONDS = 2
BOOT_AND_JOB_SECONDS = 420
MEMORY = "512M"


def missing():
    """What this guest needs and the machine lacks, as a sentence; None when all is there."""
    if not shutil.which(QEMU):
        return "qemu-system-x86 is not installed"
    return None


class Machine:
    """A kernel, its initramfs and the accelerator, chosen once and booted many times."""

    def __init__(self, cache_dir, say=lambda text: None):
        self.cache_dir = cache_dir
        self.kernel = kernels.find(cache_dir)
        self.base = kernels.base_initramfs(self.kernel, cache_dir)
        self.accelerator = "kvm" if self._kvm_works() else "tcg,thread=multi"
        say(f"guest kernel {self.kernel.release}, accelerator {self.accelerator.partition(',')[0]}")

    def _kvm_works(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return False
        argv = self._common("kvm") + ["-initrd", self.base, "-append", "console=ttyS0 panic=-1 ovfs.trial=1"]
        argv += ["-m", "256M", "-serial", "stdio"]
        guest = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            said, _ = guest.communicate(timeout=TRIAL_SECONDS)
        except subprocess.TimeoutExpired:
            guest.kill()
            said, _ = guest.communicate()
        return b"@@TRIAL" in said

    def _common(self, accelerator):
        return [
            QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35",
            "-accel", accelerator, "-cpu", "max", "-kernel", self.kernel.image,
        ]

    def command(self, initrd, socket_path, tag, result_path, queues, interactive):
        """The whole command line. The first serial port is the console, the second the result stream."""
        append = f"console=ttyS0 panic=-1 quiet ovfs.tag={tag}"
        if interactive:
            append += " ovfs.interactive=1"
        return self._common(self.accelerator) + [
            "-smp", "2", "-m", MEMORY,
            "-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on", "-numa", "node,memdev=mem",
            "-chardev", f"socket,id=fs,path={socket_path}",
            "-device", f"vhost-user-fs-pci,queue-size=1024,chardev=fs,tag={tag},num-request-queues={queues}",
            "-initrd", initrd, "-append", append,
            "-serial", "mon:stdio" if interactive else "stdio", "-serial", f"file:{result_path}",
        ]

    def run(self, job_dir, socket_path, tag, work_dir, store=None, seconds=BOOT_AND_JOB_SECONDS, queues=1,
            interactive=False, echo=None):
        """Boots, mounts the share, runs `job_dir`/run, powers off. Returns the Stream with output and status."""
        initrd = os.path.join(work_dir, "initramfs.cpio.gz")
        kernels.initramfs_with_job(self.kernel, self.cache_dir, job_dir, initrd)
        console = os.path.join(work_dir, "qemu-console.log")
        result = os.path.join(work_dir, "qemu-result.fifo")
        os.mkfifo(result)
        # Opened for reading and writing, so that QEMU can open it at any time; see below for its end.
        read_end = os.open(result, os.O_RDONLY | os.O_NONBLOCK)
        write_end = os.open(result, os.O_WRONLY)
        os.set_blocking(read_end, True)
        stream = Stream(read_end, store, echo)
        argv = self.command(initrd, socket_path, tag, result, queues, interactive)
        try:
            if interactive:
                # The terminal's own session and standard files: the person types to the guest.
                guest = subprocess.Popen(argv)
                guest.wait()
            else:
                guest = process.start(argv, console)
                try:
                    guest.wait(seconds)
                except subprocess.TimeoutExpired:
                    stream.problems.append(f"the guest was still running after {seconds} s")
                finally:
                    process.stop(guest, 2)
        finally:
            # The reader sees the end when the last writer is gone.
            os.close(write_end)
            stream.finish()
        if stream.status is None:
            said = "" if interactive else "; its console said:\n" + process.tail(console)
            stream.problems.append("the guest ended without a status" + said)
        return stream


