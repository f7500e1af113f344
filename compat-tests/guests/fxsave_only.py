"""Runs a program with PTRACE_GETREGSET and PTRACE_SETREGSET answering EINVAL: `fxsave_only.py PROGRAM ARGUMENT...`

User Mode Linux before 6.14 keeps a guest's extended processor state in 2696 bytes. Processors with tile registers have
more, the host refuses to restore a cut state, and the guest's first process dies ("ptrace set fp regs failed"). When
the register-set calls fail at its start, User Mode Linux falls back to the older FXSAVE calls, which keep the SSE
state alone; the guest's C library must then be told to leave AVX alone (NARROW_TUNABLES, as GLIBC_TUNABLES).
"""

import ctypes
import os
import struct
import sys

NARROW_TUNABLES = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-AVX_Fast_Unaligned_Load"

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SYS_PTRACE_X86_64 = 101
PTRACE_GETREGSET = 0x4204
PTRACE_SETREGSET = 0x4205
LOAD_WORD = 0x20
JUMP_EQUAL = 0x15
RETURN = 0x06
ALLOW = 0x7FFF0000
ERRNO_EINVAL = 0x00050000 | 22
OFFSET_NUMBER = 0
OFFSET_FIRST_ARGUMENT = 16


def needed():
    """Whether this processor has more state than User Mode Linux keeps."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return bool({"amx_tile", "apx"} & set(line.split()))
    return False


def install():
    program = [
        (LOAD_WORD, 0, 0, OFFSET_NUMBER),
        (JUMP_EQUAL, 0, 4, SYS_PTRACE_X86_64),
        (LOAD_WORD, 0, 0, OFFSET_FIRST_ARGUMENT),
        (JUMP_EQUAL, 1, 0, PTRACE_GETREGSET),
        (JUMP_EQUAL, 0, 1, PTRACE_SETREGSET),
        (RETURN, 0, 0, ERRNO_EINVAL),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    install()
    os.execvp(sys.argv[1], sys.argv[1:])
