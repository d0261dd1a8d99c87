"""The system calls that code which took over a child may not make (`seccomp(2)`), as a BPF program assembled here.

Denied: everything that reaches another process, the network, the kernel's inner parts, the mount table, other users' rights, or that
starts a process or a program. Threads may be started. Numbers above the newest one that was reviewed do not exist for the child, so
that what future kernels bring is not allowed by accident. The filter is for good, and every thread has it. x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

#: The newest system call that this list was made from: `set_mempolicy_home_node`, Linux 5.17.
_NEWEST = 450

#: Name to (number on x86_64, number on aarch64); None: it does not exist there.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # The network, and sockets as a way to others.
    "socket": (41, 198), "socketpair": (53, 199), "bind": (49, 200), "connect": (42, 203), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # Other processes: looking into them, steering them, sending them anything.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # System V and POSIX objects that outlive a process, and files in memory that no limit counts.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # New programs and processes; `clone` is looked at below.
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # Namespaces and mounts.
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442),
    # The kernel's inner parts: large, young, or for administrators.
    "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0),
    "userfaultfd": (323, 282), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92),
    "vhangup": (153, 58), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    # Files by handle, watching folders, and what Landlock does not look at: owners, modes, times and attributes of files.
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None),
    "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None), "mknod": (133, None), "mknodat": (259, 33),
    # Other users' rights.
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147),
    "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152), "setgroups": (116, 159), "capset": (126, 91),
}  # fmt: skip

#: What a warm parent needs to make children: namespaces, mounts and the handing over of descriptors. Its children lose it.
_OF_PARENTS = frozenset({"unshare", "mount", "umount2", "sendmsg", "capset"})

#: These are looked at in detail.
_CLONE, _CLONE3, _KILL, _TGKILL = (56, 220), (435, 435), (62, 129), (234, 131)
_PRLIMIT, _SET_AFFINITY, _FCNTL, _IOCTL = (302, 261), (203, 122), (72, 25), (16, 29)
_CLONE_THREAD = 0x10000
#: F_SETOWN, F_SETSIG, F_SETOWN_EX (signals to anybody), F_SETLEASE, F_NOTIFY.
_FCNTL_DENIED = (8, 10, 15, 1024, 1026)
#: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: all that a file or a pipe is asked by an interpreter.
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000

_LOAD, _EQUAL, _ABOVE, _FROM, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _TSYNC = 38, 1, 1

Instruction = tuple[int, int, int, int]


class SeccompUnavailable(Exception):
    """The kernel or the machine cannot filter system calls."""


def supported(machine: str) -> bool:
    """Whether the list knows the numbers of a machine (`os.uname().machine`)."""
    return machine in _MACHINES


def program(machine: str, pid: int | None) -> list[Instruction]:
    """Return the filter for a process with this id, the only one that it may signal; None: for a warm parent, which may fork and signal.

    Each instruction is (code, jump if true, jump if false, operand), as in `linux/filter.h`.
    """
    column, arch = _MACHINES[machine]
    no = _ERRNO | errno.EPERM
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER), (_FROM, 0, 1, _X32), (_RETURN, 0, 0, _KILL_PROCESS),
        (_ABOVE, 0, 1, _NEWEST), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        # The C library then takes clone, whose flags can be seen.
        (_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]  # fmt: skip
    for name, numbers in _DENIED.items():
        if (number := numbers[column]) is not None and not (pid is None and name in _OF_PARENTS):
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, no)]
    if pid is not None:
        code += _when(_CLONE[column], [_argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, no)])
        for which, allowed in ((_KILL, [pid]), (_TGKILL, [pid]), (_PRLIMIT, [0, pid]), (_SET_AFFINITY, [0, pid])):
            code += _when(which[column], [_argument(0), *_each(allowed, _ALLOW), (_RETURN, 0, 0, no)])
    code += _when(_FCNTL[column], [_argument(1), *_each(_FCNTL_DENIED, no), (_RETURN, 0, 0, _ALLOW)])
    code += _when(_IOCTL[column], [_argument(1), *_each(_IOCTL_ALLOWED, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.ENOTTY)])
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def denied(machine: str) -> dict[str, int]:
    """Return the system calls that are denied whatever their arguments, by name."""
    column, _ = _MACHINES[machine]
    return {name: number for name, numbers in _DENIED.items() if (number := numbers[column]) is not None}


def install(*, parent: bool = False) -> None:
    """Put the filter on every thread of this process, for good. Raises `SeccompUnavailable`."""
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise SeccompUnavailable(f"no list of system calls for {machine}")
    code = b"".join(struct.pack("=HBBI", *one) for one in program(machine, None if parent else os.getpid()))
    held = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
    whole = Program(len(code) // 8, ctypes.addressof(held))
    number = 317 if machine == "x86_64" else 277
    if libc.syscall(number, _SET_MODE_FILTER, _TSYNC, ctypes.byref(whole)) != 0:
        raise SeccompUnavailable(f"seccomp: {os.strerror(ctypes.get_errno())}")


def _argument(index: int) -> Instruction:
    """Load the lower half of an argument (both machines are little-endian); ids, commands and these flags have 32 bits."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def _each(values: Iterable[int], result: int) -> list[Instruction]:
    return [one for value in values for one in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, result))]


def _when(number: int, body: list[Instruction]) -> list[Instruction]:
    """Run `body`, which returns in the end, when the system call is `number`. The accumulator holds the number before and after."""
    return [(_EQUAL, 0, len(body), number), *body]
