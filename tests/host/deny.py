"""Run a program in which system calls are refused: ``deny.py 238:1,237:1 PROGRAM ARGS…`` (number:errno).

A seccomp filter, as container runtimes install one. It is inherited by everything the program starts.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38  # linux/prctl.h
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
ALLOW, ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h


def filter_program(denied: dict[int, int]) -> bytes:
    """The BPF instructions (struct sock_filter): load the number of the call, answer the denied ones with errno."""
    code = [struct.pack("=HBBI", LOAD, 0, 0, 0)]
    for number, errno in denied.items():
        code.append(struct.pack("=HBBI", JUMP_IF_EQUAL, 0, 1, number))
        code.append(struct.pack("=HBBI", RETURN, 0, 0, ERRNO | errno))
    return b"".join([*code, struct.pack("=HBBI", RETURN, 0, 0, ALLOW)])


def install(denied: dict[int, int]) -> None:
    """Deny these calls to this process and everything it starts, permanently."""
    code = ctypes.create_string_buffer(filter_program(denied))
    program = struct.pack("@HP", (len(code) - 1) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0):
        sys.exit(f"no seccomp filter here: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    install({int(number): int(errno) for number, errno in (pair.split(":") for pair in sys.argv[1].split(","))})
    os.execvp(sys.argv[2], sys.argv[2:])
