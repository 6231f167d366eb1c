"""Runs a program in a sandbox that refuses system calls, as those of containers do:
``refuse.py setsid,prctl PROGRAM ARGS``.

The filter (seccomp(2), filters of BPF) is inherited by everything the program starts. Exit status 77: not possible.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

IMPOSSIBLE = 77
NUMBERS = {
    "x86_64": {
        "sched_setaffinity": 203, "sched_getaffinity": 204, "setsid": 112, "prctl": 157, "set_mempolicy": 238,
        "mbind": 237, "get_mempolicy": 239, "pidfd_open": 434,
    },
    "aarch64": {
        "sched_setaffinity": 122, "sched_getaffinity": 123, "setsid": 157, "prctl": 167, "set_mempolicy": 237,
        "mbind": 235, "get_mempolicy": 236, "pidfd_open": 434,
    },
}  # fmt: skip

# linux/prctl.h, linux/seccomp.h, linux/bpf_common.h
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def refuse(names: list[str]) -> bool:
    """Refuse these system calls with EPERM from now on; returns whether that is possible here."""
    numbers = NUMBERS.get(platform.machine())
    if numbers is None:
        return False
    code = [(LOAD, 0, 0, 0)]  # the number of the system call
    for name in names:
        code += [(JUMP_IF_EQUAL, 0, 1, numbers[name]), (RETURN, 0, 0, ERRNO | errno.EPERM)]
    code.append((RETURN, 0, 0, ALLOW))
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    program = struct.pack("HP", len(code), ctypes.addressof(filters))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0)


if __name__ == "__main__":
    if not refuse(sys.argv[1].split(",")):
        sys.exit(IMPOSSIBLE)
    os.execvp(sys.argv[2], sys.argv[2:])
