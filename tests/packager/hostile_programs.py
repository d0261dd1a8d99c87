"""What hostile code tries once it runs in a child (SEC-B2). Each program returns what it got, or raises; a test reads this file.

Every program goes through one child per level, one after the other, and must get nothing. The same programs run without walls too, where
nearly all of them succeed: a program that cannot succeed anywhere would prove nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

JOB: dict[str, Any] = {}
PROGRAMS: dict[str, Callable[[], Any]] = {}
LIBC = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"


def program(what: Callable[[], Any]) -> Callable[[], Any]:
    PROGRAMS[what.__name__] = what
    return what


def call(number: int, *arguments: Any) -> int:
    """Make a raw system call, as code that brings its own C library would."""
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(LIBC.syscall(ctypes.c_long(number), *words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def reached(number: int, *arguments: Any) -> str | None:
    """Return that the kernel looked at the arguments of a system call, though it did not like them."""
    try:
        call(number, *arguments)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES, errno.ENOSYS}:
            raise
        return f"the kernel looked at the arguments ({error})"
    return "done"


def found(data: bytes) -> str | None:
    return "the secret" if JOB["secret"].encode() in data else None


def read(path: str) -> str | None:
    with open(path, "rb") as file:
        return found(file.read())


# --- secrets: files, environment, memory -------------------------------------------------------------------------------------------


@program
def reads_a_file_of_the_service() -> Any:
    return read(JOB["secret_file"])


@program
def reads_it_with_openat2() -> Any:
    how = struct.pack("=QQQ", os.O_RDONLY, 0, 0)
    handle = call(437, -100, JOB["secret_file"].encode() + b"\0", how, 24)
    return found(os.read(handle, 4096))


@program
def reads_it_through_the_root_of_another_process() -> Any:
    return read(f"/proc/{JOB['service']}/root{JOB['secret_file']}")


@program
def reads_it_through_its_own_root() -> Any:
    return read(f"/proc/self/root{JOB['secret_file']}")


@program
def reads_it_by_a_relative_path() -> Any:
    return read("../" * 20 + JOB["secret_file"])


@program
def reads_it_through_a_link() -> Any:
    os.symlink(JOB["secret_file"], "out/link")
    return read("out/link")


@program
def takes_it_by_a_hard_link() -> Any:
    os.link(JOB["secret_file"], "out/hard")
    return read("out/hard")


@program
def moves_it_into_its_folder() -> Any:
    os.rename(JOB["other_file"], "out/moved")
    os.rename("out/moved", JOB["other_file"])
    return "moved"


@program
def reads_the_environment_of_the_service() -> Any:
    with open(f"/proc/{JOB['service']}/environ", "rb") as file:
        return file.read() or None


@program
def reads_the_environment_of_its_parents() -> Any:
    seen = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            seen.append(len(file.read()))
    return sum(seen) or None


@program
def has_an_environment_with_secrets() -> Any:
    # The control: what the child has of its own must be nothing but what entry.py sets.
    known = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"}
    known |= {"TF_CPP_MIN_LOG_LEVEL", "ORT_DISABLE_TELEMETRY", "HOME", "TMPDIR", "PWD", "LC_CTYPE"}
    return sorted(set(os.environ) - known) or None


@program
def reads_the_descriptors_of_the_service() -> Any:
    return os.listdir(f"/proc/{JOB['service']}/fd")


@program
def reads_the_memory_of_the_service() -> Any:
    with open(f"/proc/{JOB['service']}/mem", "rb") as memory:
        return memory.fileno()


@program
def reads_the_memory_of_another_process() -> Any:
    with open(f"/proc/{JOB['victim']}/mem", "rb") as memory:
        return memory.fileno()


@program
def has_descriptors_that_nobody_gave_it() -> Any:
    mine = []
    for number in range(4, 256):
        try:
            mine.append(os.readlink(f"/proc/self/fd/{number}") if os.path.exists("/proc/self/fd") else os.fstat(number))
        except OSError:
            continue
    return mine or None


@program
def reads_the_job_of_another_account() -> Any:
    return read(JOB["other_job"])


@program
def lists_the_jobs_of_others() -> Any:
    return os.listdir(os.path.dirname(os.path.dirname(os.path.dirname(JOB["other_job"]))))


@program
def lists_the_home_of_the_user() -> Any:
    return os.listdir(JOB["home"])


@program
def reads_the_passwords_of_the_machine() -> Any:
    with open("/etc/shadow", "rb") as file:
        return file.read(1)


@program
def reads_the_checkout() -> Any:
    with open(os.path.join(JOB["root"], "pyproject.toml"), "rb") as file:
        return file.read(1)


@program
def watches_the_files_of_the_service() -> Any:
    watch = call(294 if X86 else 26, 0)
    return call(254 if X86 else 27, watch, os.path.dirname(JOB["secret_file"]).encode() + b"\0", 0x100)


# --- writing: the runtime, the input, the machine ----------------------------------------------------------------------------------


@program
def opens_its_own_code_to_write() -> Any:
    with open(os.path.join(JOB["root"], "services/packager/child.py"), "r+b"):
        return "open"


@program
def opens_the_standard_library_to_write() -> Any:
    with open(os.__file__, "r+b"):
        return "open"


@program
def puts_a_module_into_the_environment() -> Any:
    path = os.path.join(JOB["site"], "latebind_hostile_probe.py")
    with open(path, "xb"):
        os.unlink(path)
        return "made"


@program
def changes_its_input() -> Any:
    with open("in/0", "r+b") as file:
        file.write(b"changed")
        return "changed"


@program
def removes_its_input() -> Any:
    os.unlink("in/1")
    return "removed"


@program
def empties_a_file_of_the_service() -> Any:
    os.truncate(JOB["other_file"], 0)
    return "emptied"


@program
def opens_a_file_of_the_service_to_empty_it() -> Any:
    os.close(os.open(JOB["other_file"], os.O_RDONLY | os.O_TRUNC))
    return "emptied"


@program
def removes_a_file_of_the_service() -> Any:
    os.unlink(JOB["doomed_file"])
    return "removed"


@program
def opens_up_a_file_of_the_service() -> Any:
    os.chmod(JOB["other_file"], 0o666)
    return "changed"


@program
def gives_a_file_of_the_service_away() -> Any:
    os.chown(JOB["other_file"], os.getuid(), os.getgid())
    return "changed"


@program
def changes_the_times_of_a_file() -> Any:
    os.utime(JOB["other_file"], (1, 1))
    return "changed"


@program
def marks_a_file_of_the_service() -> Any:
    os.setxattr(JOB["other_file"], "user.hostile", b"1")
    return "marked"


@program
def changes_the_flags_of_its_code() -> Any:
    with open(os.__file__, "rb") as file:
        flags = struct.unpack("i", fcntl.ioctl(file, 0x80086601, bytes(8))[:4])[0]
        fcntl.ioctl(file, 0x40086602, struct.pack("q", flags))
        return "changed"


@program
def leases_its_code_so_that_nobody_can_change_it() -> Any:
    with open(os.__file__, "rb") as file:
        fcntl.fcntl(file, 1024, fcntl.F_RDLCK)
        return "leased"


@program
def writes_into_the_temporary_folder() -> Any:
    path = f"/tmp/latebind-hostile-{os.getpid()}"
    with open(path, "xb"):
        os.unlink(path)
        return "written"


@program
def writes_into_shared_memory() -> Any:
    path = f"/dev/shm/latebind-hostile-{os.getpid()}"
    with open(path, "xb"):
        os.unlink(path)
        return "written"


@program
def makes_a_device() -> Any:
    os.mknod("out/device", 0o600 | 0o060000, os.makedev(1, 1))
    os.unlink("out/device")
    return "made"


@program
def writes_to_the_kernel() -> Any:
    with open("/proc/sys/kernel/core_pattern", "r+b"):
        return "open"


@program
def triggers_system_requests() -> Any:
    with open("/proc/sysrq-trigger", "wb"):
        return "open"


# --- the network, and other processes ----------------------------------------------------------------------------------------------


@program
def connects_to_a_server() -> Any:
    with socket.create_connection(("127.0.0.1", JOB["port"]), 2):
        return "connected"


@program
def connects_to_a_socket_file() -> Any:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(JOB["socket_file"])
        return "connected"


@program
def connects_to_an_abstract_socket() -> Any:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("\0" + JOB["abstract"])
        return "connected"


@program
def makes_sockets_of_every_kind() -> Any:
    made = []
    for family, kind in ((2, 1), (2, 2), (2, 3), (10, 1), (1, 1), (16, 3), (17, 3), (40, 1), (38, 5)):
        try:
            made.append(call(41 if X86 else 198, family, kind, 0))
        except OSError:
            continue
    return made or None


@program
def makes_a_pair_of_sockets() -> Any:
    return [one.close() for one in socket.socketpair()]


@program
def listens() -> Any:
    with socket.create_server(("127.0.0.1", 0)):
        return "listens"


@program
def signals_another_process() -> Any:
    os.kill(JOB["victim"], signal.SIGURG)
    return "sent"


@program
def signals_the_service() -> Any:
    os.kill(JOB["service"], 0)
    return "sent"


@program
def signals_everybody() -> Any:
    os.kill(-1, 0)
    return "sent"


@program
def signals_its_group() -> Any:
    os.killpg(0, 0)
    return "sent"


@program
def signals_its_guard() -> Any:
    if os.getppid() == 0:
        raise OSError("it has no parent that it could name")
    os.kill(os.getppid(), 0)
    return "sent"


@program
def signals_a_thread_of_another_process() -> Any:
    return call(200 if X86 else 130, JOB["victim"], 0)


@program
def signals_through_a_descriptor_of_a_process() -> Any:
    return call(424, call(434, JOB["victim"], 0), 0, 0, 0)


@program
def has_a_pipe_send_signals_to_another_process() -> Any:
    reading, writing = os.pipe()
    fcntl.fcntl(reading, 8, JOB["victim"])
    fcntl.fcntl(reading, 10, signal.SIGURG)
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writing, b"x")
    return "sent"


@program
def traces_another_process() -> Any:
    return call(101 if X86 else 117, 0x4206, JOB["victim"], 0, 0)


@program
def reads_another_process_with_process_vm_readv() -> Any:
    return reached(310 if X86 else 270, JOB["victim"], 0, 0, 0, 0, 0)


@program
def limits_another_process() -> Any:
    return resource.prlimit(JOB["victim"], resource.RLIMIT_NOFILE)


@program
def slows_another_process_down() -> Any:
    os.setpriority(os.PRIO_PROCESS, JOB["victim"], 19)
    return "slowed"


@program
def pins_another_process_to_one_processor() -> Any:
    os.sched_setaffinity(JOB["victim"], {0})
    return "pinned"


@program
def attaches_the_shared_memory_of_another_process() -> Any:
    LIBC.shmat.restype = ctypes.c_void_p
    address = LIBC.shmat(JOB["segment"], None, 0)
    if address in {None, 2**64 - 1}:
        raise OSError(ctypes.get_errno(), "shmat")
    return found(ctypes.string_at(address, 64))


# --- new processes, namespaces, mounts, the kernel ---------------------------------------------------------------------------------


@program
def forks() -> Any:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


@program
def clones_with_the_newer_call() -> Any:
    arguments = struct.pack("=8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = call(435, arguments, 64)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


@program
def starts_a_program() -> Any:
    return subprocess.run([sys.executable, "-c", "0"], check=True).returncode == 0


@program
def starts_a_shell() -> Any:
    return os.system("true") == 0 or None


@program
def becomes_another_program() -> Any:
    return reached(59 if X86 else 221, b"/nowhere\0", 0, 0)


@program
def leaves_a_daemon() -> Any:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {}, setsid=True)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "left"


@program
def makes_a_mount_namespace() -> Any:
    return call(272 if X86 else 97, 0x20000)


@program
def enters_the_namespaces_of_another_process() -> Any:
    handle = os.open(f"/proc/{JOB['service']}/ns/net", os.O_RDONLY)
    return call(308 if X86 else 268, handle, 0)


@program
def mounts_something() -> Any:
    return reached(165 if X86 else 40, 0, 0, 0, 0, 0)


@program
def changes_its_root() -> Any:
    return reached(161 if X86 else 51, b"/nowhere\0")


@program
def opens_a_tree_of_mounts() -> Any:
    return call(428, -100, b"/\0", 1)


@program
def opens_files_by_handle() -> Any:
    return reached(304 if X86 else 265, -1, 0, 0)


@program
def loads_a_program_into_the_kernel() -> Any:
    return reached(321 if X86 else 280, 5, 0, 0)


@program
def sets_up_an_io_ring() -> Any:
    return call(425, 8, ctypes.create_string_buffer(120))


@program
def joins_a_keyring() -> Any:
    return reached(250 if X86 else 219, 0, -3, 0)


@program
def adds_a_key() -> Any:
    return reached(248 if X86 else 217, 0, 0, 0, 0, 0)


@program
def measures_the_machine() -> Any:
    return reached(298 if X86 else 241, 0, 0, -1, -1, 0)


@program
def handles_page_faults_itself() -> Any:
    return call(323 if X86 else 282, 0)


@program
def loads_a_module_into_the_kernel() -> Any:
    return reached(175 if X86 else 105, 0, 0, 0)


@program
def restarts_the_machine() -> Any:
    return reached(169 if X86 else 142, 0, 0, 0, 0)


@program
def reads_the_log_of_the_kernel() -> Any:
    return call(103 if X86 else 116, 3, ctypes.create_string_buffer(4096), 4096)


@program
def renames_the_machine() -> Any:
    return reached(170 if X86 else 161, 0, -1)


@program
def sets_the_clock() -> Any:
    return reached(164 if X86 else 170, -1, -1)


@program
def becomes_another_user() -> Any:
    return call(117 if X86 else 147, -1, -1, -1)


@program
def has_capabilities() -> Any:
    held = (ctypes.c_uint32 * 6)()
    LIBC.capget(struct.pack("=Ii", 0x20080522, 0), held)
    return held[0] or held[3] or None


@program
def may_gain_privileges() -> Any:
    return None if LIBC.prctl(39, 0, 0, 0, 0) == 1 else "no_new_privs is not set"


@program
def holds_files_in_memory_that_nothing_counts() -> Any:
    return os.memfd_create("hostile")


@program
def makes_objects_that_outlive_it() -> Any:
    number = LIBC.shmget(0, 4096, 0o1600)
    if number < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    LIBC.shmctl(number, 0, None)
    return "made"


@program
def takes_a_system_call_of_the_future() -> Any:
    return reached(457, -1, -1, -1, -1)


@program
def lifts_its_own_limits() -> Any:
    lifted = []
    for name in ("AS", "CPU", "FSIZE", "NOFILE", "CORE"):
        number = getattr(resource, f"RLIMIT_{name}")
        try:
            resource.setrlimit(number, (resource.getrlimit(number)[1] + 1,) * 2)
            lifted.append(name)
        except (OSError, ValueError):
            continue
    return lifted or None


@program
def fills_more_memory_than_its_cap_with_files() -> Any:
    """Where files lie in memory; elsewhere a watch ends what fills the disk (test_sandbox)."""
    kept = []
    if not JOB["in_memory"]:
        raise OSError("its files lie on a disk")
    for number in range(64):
        with open(f"out/{number}", "wb") as file:
            file.write(bytes(2**20))
        kept.append(number)
    return len(kept)


@program
def makes_a_user_namespace() -> Any:
    # Every user may, in a process with one thread. The last one: root has no rights outside of it afterwards.
    return call(272 if X86 else 97, 0x10000000)


def every_denied_call(numbers: dict[str, int], harmful: frozenset[str]) -> dict[str, str]:
    """Make every system call of the list with nonsense; return those that the kernel looked at."""
    looked = {}
    for name, number in numbers.items():
        if name in harmful:
            continue
        try:
            looked[name] = str(reached(number, -1, -1, -1, -1, -1, -1))
        except OSError:
            continue
    return looked


def attack(job: dict[str, Any]) -> dict[str, Any]:
    """Run every program; return what each got."""
    JOB.update(job)
    got = {}
    for name, one in PROGRAMS.items():
        try:
            result = one()
        except (OSError, subprocess.SubprocessError, MemoryError, ValueError) as error:
            result = None
            if os.environ.get("SHOW"):
                print(name, error, file=sys.stderr)
        if result is not None:
            got[name] = repr(result)[:200]
    return {"ok": True, "got": got, "tried": list(PROGRAMS), "looked": every_denied_call(job["calls"], frozenset(job["harmful"]))}
