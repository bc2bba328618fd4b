"""The inside of the sandbox: a process gives up almost everything, then runs a program that nobody trusts.

sandbox.py starts this file as a script, with the same Python. It imports nothing of ours, so that what runs
beside the program is all on this page. In this order:

1. Limits (setrlimit): seconds of CPU, bytes of memory, of a file, of a core dump, and open files.
2. No new privileges (prctl): nothing that it does later can win any.
3. Landlock: from now on files can be read below Python's own library only, and written in the folder that
   this process was started in, which has no subfolders and can't get any.
4. Seccomp: a filter in the kernel that lets the system calls of `ALLOWED` pass and refuses all others with
   EPERM. Missing there are, among others, those that make processes and threads, replace the program, make
   sockets, send signals, trace, mount, or change owners, times and modes of files.

None of the four needs root, and none can be taken back. If one of them fails, nothing is run.

A program that leaves before its end, by sys.exit(0) or os._exit(0), or that prints "passed", has proved
nothing. Only when the last line was run does this file read a secret from the control pipe, where it waits
in the kernel and not in our memory, and send it back. A program that is written to deceive can find it there,
as it could replace the functions by which it is tested: both share one interpreter. It is a wall against
accidents and shortcuts, and not against a clever liar.

Shapes of the kernel's structures: linux/landlock.h, linux/filter.h, linux/seccomp.h, linux/audit.h.
"""

import ast
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from pathlib import Path

# Of each system call: its number on x86_64 and on aarch64 ("-": it doesn't exist there).
ALLOWED = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, close 3 57, lseek 8 62,
fstat 5 80, newfstatat 262 79, statx 332 291, stat 4 -, lstat 6 -, access 21 -, faccessat 269 48,
faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents64 217 61, getcwd 79 17, ftruncate 77 46,
fsync 74 82, fdatasync 75 83, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276,
dup 32 23, dup2 33 -, dup3 292 24, pipe2 293 59, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72,
umask 95 166,
mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, brk 12 214, madvise 28 233,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132, restart_syscall 219 128,
alarm 37 -, setitimer 38 103, getitimer 36 102, nanosleep 35 101, clock_nanosleep 230 115,
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getrusage 98 165,
getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176,
getegid 108 177, uname 63 160, sysinfo 99 179, getcpu 309 168, sched_yield 24 124, sched_getaffinity 204 123,
getrandom 318 278, futex 202 98, set_robust_list 273 99, rseq 334 293, arch_prctl 158 -,
exit 60 93, exit_group 231 94
"""
# Passed on if their arguments are harmless: see `_filter`.
OPENAT, FCNTL = (257, 56), (72, 25)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH_…

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same everywhere
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = (1 << bit for bit in (1, 2, 3, 5, 8, 14))
RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # later ones: not needed by files

SET_PDEATHSIG, SET_SECCOMP, SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER, SECCOMP_ALLOW, SECCOMP_ERRNO, SECCOMP_KILL = 2, 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JUMP_IF_EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06  # BPF: LD|W|ABS, JMP|JEQ|K, ALU|AND|K, RET|K

# Where Python keeps what programs may import, and what its extension modules are linked with.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
OTHERS = ("/usr/share/zoneinfo", "/dev/urandom", "/dev/null")


def landlock_version() -> int:
    """Which Landlock this kernel has; 0 or less: none."""
    return int(ctypes.CDLL(None).syscall(LANDLOCK_CREATE, None, 0, 1))


def main(control: int, result: int) -> None:
    """Read the order from `control`, confine this process, run the program, and prove it on `result`."""
    order = json.loads(_line(control))
    try:
        confine(order)
    except OSError as error:
        os.write(result, f"refused {error}\n".encode())
        return
    os.write(result, b"ready\n")
    read, write, leave = os.read, os.write, os._exit  # the program may put others in their place
    try:
        execute(order["program"], order["show_value"])
        sys.stdout.flush()
    except BaseException as error:
        reason = f"{type(error).__name__}{_line_number(error)}: {error}".strip().removesuffix(":")
        write(result, f"failed {reason}"[:300].encode("utf-8", "replace"))
        leave(1)
    write(result, b"passed " + read(control, 64))
    leave(0)


def execute(program: str, show_value: bool) -> None:
    """Run all lines; with `show_value`, print what the last one is worth, if it is an expression."""
    tree, space = ast.parse(program, "program.py"), {"__name__": "__main__"}
    last = tree.body.pop() if show_value and tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "program.py", "exec"), space)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "program.py", "eval"), space)
        if value is not None:
            print(repr(value))


def confine(order: dict[str, int]) -> None:
    """Give up everything that the program must not have. Raises OSError if something can't be given up."""
    column, arch = MACHINES[platform.machine()]
    _call("prctl", SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # if pilgrim is killed, this ends as well
    if os.getppid() != order["parent"]:
        raise OSError("the process that asked for this is gone")
    for limit, soft, hard in (
        (resource.RLIMIT_CPU, order["cpu_s"], order["cpu_s"] + 1),  # first SIGXCPU, then SIGKILL
        (resource.RLIMIT_AS, order["memory_bytes"], order["memory_bytes"]),
        (resource.RLIMIT_FSIZE, order["disk_bytes"], order["disk_bytes"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 64, 64),
    ):
        resource.setrlimit(limit, (soft, hard))
    _call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _restrict_files(Path.cwd())
    _restrict_calls(column, arch)


def _restrict_files(folder: Path) -> None:
    """Landlock: Python's library to read, `folder` to keep files in, and nothing else."""
    handled = RIGHTS_BY_VERSION[min(landlock_version(), max(RIGHTS_BY_VERSION))]
    attributes = ctypes.c_uint64(handled)
    rules = _call("syscall", LANDLOCK_CREATE, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    readable = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *LIBRARIES, *OTHERS}
    for path in map(Path, readable):
        if path.is_dir():
            _allow(rules, path, READ_FILE | READ_DIR)
        elif path.exists():
            _allow(rules, path, READ_FILE | (WRITE_FILE if path.name == "null" else 0))
    own = READ_FILE | READ_DIR | WRITE_FILE | MAKE_REG | REMOVE_FILE | TRUNCATE
    _allow(rules, folder, own & handled)
    _call("syscall", LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _allow(rules: int, path: Path, access: int) -> None:
    """Add `path`, and what lies below, to what may be used. The structure is a u64 and an s32, packed."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    beneath = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor))
    _call("syscall", LANDLOCK_ADD, rules, 1, beneath, 0)
    os.close(descriptor)


def _restrict_calls(column: int, arch: int) -> None:
    """Seccomp: hand the kernel the filter."""
    code = b"".join(struct.pack("=HBBI", *step) for step in _filter(column, arch))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    _call("prctl", SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program), 0, 0)


def _filter(column: int, arch: int) -> list[tuple[int, int, int, int]]:
    """The filter's steps: (operation, steps to skip if equal, if not, operand).

    It looks at struct seccomp_data: the call's number at byte 0, the architecture at 4, the lower halves of
    the arguments at 16, 24, 32, …
    """
    allow, refuse = (RETURN, 0, 0, SECCOMP_ALLOW), (RETURN, 0, 0, SECCOMP_ERRNO | 1)  # 1: EPERM
    steps = [(LOAD, 0, 0, 4), (JUMP_IF_EQUAL, 1, 0, arch), (RETURN, 0, 0, SECCOMP_KILL), (LOAD, 0, 0, 0)]
    # open(path, O_RDONLY | O_TRUNC) empties a file that may only be read, on kernels before Landlock 3.
    truncate_only = [(LOAD, 0, 0, 32), (AND, 0, 0, os.O_TRUNC | os.O_ACCMODE)]
    truncate_only += [(JUMP_IF_EQUAL, 0, 1, os.O_TRUNC), refuse, allow]
    steps += [(JUMP_IF_EQUAL, 0, len(truncate_only), OPENAT[column]), *truncate_only]
    # fcntl could have the kernel send a signal to another process (F_SETOWN); duplicates and flags are fine.
    harmless = [(LOAD, 0, 0, 24)]
    for command in (0, 1, 2, 3, 4, 1030):  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
        harmless += [(JUMP_IF_EQUAL, 0, 1, command), allow]
    harmless += [refuse]
    steps += [(JUMP_IF_EQUAL, 0, len(harmless), FCNTL[column]), *harmless]
    for entry in ALLOWED.replace("\n", " ").split(","):
        number = entry.split()[1 + column]
        if number != "-":
            steps += [(JUMP_IF_EQUAL, 0, 1, int(number)), allow]
    return [*steps, refuse]


def _call(function: str, *arguments: object) -> int:
    """A function of the C library; whole numbers are passed as longs. Raises OSError if it returns -1."""
    libc = ctypes.CDLL(None, use_errno=True)
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    value = int(getattr(libc, function)(*longs))
    if value == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function} {arguments[0]}: {os.strerror(number)}")
    return value


def _line(descriptor: int) -> bytes:
    """What stands before the first line end, and not a byte more."""
    line = bytearray()
    while not line.endswith(b"\n"):
        line += os.read(descriptor, 1) or b"\n"  # byte by byte: what is behind stays in the pipe
    return bytes(line)


def _line_number(error: BaseException) -> str:
    """ " in line 12" of the program, if the error was raised in one."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "program.py":
            found = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
