"""The shim of each sandbox and container: it sets up the namespaces, runs the program, and records the exit status.

The shim is a separate program (`python -ISE shim.py FILE`). It uses only the standard library, so it starts in
milliseconds. It runs on when the node agent ends, and a restarted agent reads the exit status from the files. FILE is
JSON:

    {"kind": "sandbox", "hostname", "share_net": bool, "command": [...], "state": FILE}
    {"kind": "container", "pause": pid, "root": DIR, "command": [...], "env": {...}, "cwd",
     "binds": [[from, to, mode]...],
     "tmpfs": [path...], "log": FILE, "state": FILE, "exit": FILE}

A sandbox's shim becomes the pause process by exec. A container's shim stays the container's parent and writes the log.
`python -ISE shim.py exec PID WORD...` runs a command in the container whose first process is PID, with the container's
namespaces, root and capabilities.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 1, 24, 47, 4
CAPABILITY_VERSION_3 = 0x20080522
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
# Capabilities that container runtimes leave to root in a container: chown, dac_override, fsetid, fowner,
# net_raw, setgid, setuid, setfcap, setpcap, net_bind_service, sys_chroot, kill, audit_write. They leave mknod too, and
# confine it by a device cgroup, which these containers do not have.
KEEP_CAPABILITIES = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31}
# What /proc and /sys tell or change of the whole machine: hidden, or read-only (the OCI runtime specification's
# linux.maskedPaths and linux.readonlyPaths, with the paths that container runtimes put there).
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
FILES = (1024, 524_288)  # soft and hard
LOG_LIMIT, LINE = 10 * 1024 * 1024, 16 * 1024  # LINE: as containerd and CRI-O cut long lines
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    check(
        libc.mount(
            source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
        ),
        f"mount {source} on {target}",
    )


def write(path: str, value: dict[str, Any]) -> None:
    """Write `value` as JSON. The write is atomic: a reader never sees an incomplete file."""
    with open(path + ".new", "w") as file:
        json.dump(value, file)
    os.rename(path + ".new", path)


def started(pid: int) -> int:
    """Return the start time of a process in clock ticks. Pid and start time identify a process uniquely."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[19])


# ---- what the node agent must not hand down


def disinherit() -> None:
    """Give the pod the limit of open files that systemd gives to services, and an ordinary OOM score and priority. The
    node agent may run with more (a unit's LimitNOFILE, OOMScoreAdjust and Nice, the role's own limit).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in (FILES, (min(FILES[0], hard), min(FILES[1], hard))):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
        except (OSError, ValueError):
            continue  # without CAP_SYS_RESOURCE the hard limit stays
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
    except OSError:
        pass  # without CAP_SYS_RESOURCE a score cannot fall below the one that was given
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:
        pass  # raising the priority needs CAP_SYS_NICE


def ordinary_signals() -> None:
    """Give every signal its default action, just before exec, which keeps ignored signals ignored: Python ignores
    SIGPIPE and SIGXFSZ, and nohup, which may have started the cluster, SIGHUP.
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


# ---- sandbox


def loopback_up() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def sandbox(spec: dict[str, Any]) -> None:
    check(libc.unshare(NEWIPC | NEWUTS | (0 if spec["share_net"] else NEWNET)), "unshare")
    socket.sethostname(spec["hostname"])
    if not spec["share_net"]:
        loopback_up()
    write(spec["state"], {"pid": os.getpid(), "started": started(os.getpid())})
    os.setsid()
    ordinary_signals()
    os.execv(spec["command"][0], spec["command"])


# ---- container


def join(pause: int) -> None:
    """Enter the sandbox's network, IPC and UTS namespaces."""
    for kind, flag in (("net", NEWNET), ("ipc", NEWIPC), ("uts", NEWUTS)):
        fd = os.open(f"/proc/{pause}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        check(libc.setns(fd, flag), f"setns {kind}")
        os.close(fd)


def bind(source: str, target: str, mode: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target) or os.path.islink(target):
            if os.path.islink(target):
                os.unlink(target)  # /etc/resolv.conf is often a link to a path that does not exist in the container
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, target, flags=MS_BIND)
    if mode == "ro":
        mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def inside(root: str, path: str) -> str:
    """Return where `path` of a container is below `root`. Its symbolic links and ".." count from `root`, so nothing
    leads out of it. Parts that do not exist are kept. Raises OSError after 40 links.
    """
    parts, at, links = path.split("/")[::-1], root, 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if part == "..":
            at = at if at == root else os.path.dirname(at)
            continue
        try:
            target = os.readlink(f"{at}/{part}")
        except OSError:
            at = f"{at}/{part}"  # no link, or nothing
            continue
        links += 1
        if links > 40:
            raise OSError(errno.ELOOP, f"{path}: {os.strerror(errno.ELOOP)}")
        if target.startswith("/"):
            at = root
        parts += target.split("/")[::-1]
    return at


def make_root(spec: dict[str, Any]) -> str:
    """Mount the container's root and return its path: an overlay over the directory `lower` with its writable layer on
    a tmpfs. The kernel removes both with the mount namespace.
    """
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    base = spec["root"]
    mount("podwire", base, "tmpfs", data="mode=0755")
    for part in ("upper", "work", "merged"):
        os.mkdir(f"{base}/{part}")
    merged = f"{base}/merged"
    layers = f"lowerdir={spec['lower']},upperdir={base}/upper,workdir={base}/work"
    mount("podwire", merged, "overlay", MS_NODEV, layers)
    for path in ("/proc", "/sys", "/dev", "/dev/shm", "/tmp", "/run"):
        if path in ("/proc", "/sys"):
            continue
        target = inside(merged, path)
        os.makedirs(target, exist_ok=True)
        mode = "mode=0755" if path in ("/dev", "/run") else "mode=1777"
        mount("podwire", target, "tmpfs", MS_NOSUID | MS_NODEV, mode)
    for device in ("null", "zero", "full", "random", "urandom", "tty"):
        bind(f"/dev/{device}", f"{merged}/dev/{device}", "rw")
    for link, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        os.symlink(target, f"{merged}/dev/{link}")
    for path in spec["tmpfs"]:
        target = inside(merged, path)
        if target == merged:
            raise OSError(errno.EINVAL, f"mountPath {path!r} is the container's root, which no volume can replace")
        os.makedirs(target, exist_ok=True)
        mount("podwire", target, "tmpfs", MS_NOSUID | MS_NODEV)
    for source, path, mode in spec["binds"]:
        folder, _, own = path.rpartition("/")
        bind(source, f"{inside(merged, folder)}/{own}", mode)
    return merged


def enter_root(merged: str) -> None:
    mount("proc", merged + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", merged + "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    os.chdir(merged)
    check(
        libc.syscall(ctypes.c_long(155), b".", b"."), "pivot_root"
    )  # both arguments are ".": the old root is then stacked on the new root
    check(libc.umount2(b".", 2), "umount the old root")
    os.chdir("/")


def confine() -> None:
    """Hide and protect the machine's settings in the container's /proc and /sys."""
    safe = MS_NOSUID | MS_NODEV | MS_NOEXEC
    for path in MASKED:
        if os.path.isdir(path):
            mount("podwire", path, "tmpfs", safe | MS_RDONLY, "size=0")
        elif os.path.exists(path):
            mount("/dev/null", path, flags=MS_BIND)
    for path in READ_ONLY:
        if os.path.exists(path):
            mount(path, path, flags=MS_BIND | MS_REC)
            mount("none", path, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | safe)


def drop_capabilities() -> None:
    """Keep KEEP_CAPABILITIES in every set, and none in the inheritable and ambient sets: an inheritable capability
    outlasts the bounding set in a program of root.
    """
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        if capability not in KEEP_CAPABILITIES:
            check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "drop a capability")
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    kept = sum(1 << capability for capability in KEEP_CAPABILITIES)
    words = struct.pack("6I", kept, kept, 0, kept >> 32, kept >> 32, 0)  # effective, permitted, inheritable; twice
    check(libc.capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), words), "drop capabilities")


def enter(directory: str) -> None:
    """Change to the container's working directory. Raises an OSError that names the directory, because a
    FileNotFoundError without this name would seem to refer to the program.
    """
    try:
        os.chdir(directory)
    except OSError as err:
        raise OSError(f"workingDir {directory!r}: {err.strerror}") from err


def become(spec: dict[str, Any], stdout: int, stderr: int) -> None:
    """Turn the forked child into the container's first process, pid 1 of a new pid namespace."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        check(libc.unshare(NEWNS), "unshare")  # in the parent, pivot_root would also move the parent's root
        merged = make_root(spec)
        enter_root(merged)
        confine()
        os.setsid()
        drop_capabilities()
        null = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
            os.dup2(source, target)
        stderr = 2  # closerange() below closes the original descriptor; the copies stay open
        enter(spec["cwd"])
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        ordinary_signals()
        os.execvpe(spec["command"][0], spec["command"], spec["env"])
    except FileNotFoundError as err:
        message = f"exec: {spec['command'][0]!r}: no such file" if "mount" not in str(err) else str(err)
        os.write(stderr, f"podwire: {message}\n".encode())
        os._exit(127)
    except OSError as err:
        os.write(stderr, f"podwire: cannot start the container: {err}\n".encode())
        os._exit(126)


def records(held: bytes, data: bytes, end: bool) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return (what waits for the end of its line, (tag, text) of what does not). A line of more than LINE bytes becomes
    several records: all but the last have the tag P (the kubelet's log format).
    """
    *lines, rest = (held + data).split(b"\n")
    found = []
    for line in lines:
        *parts, last = [line[at : at + LINE] for at in range(0, len(line), LINE)] or [b""]
        found += [*((b"P", part) for part in parts), (b"F", last)]
    while len(rest) > LINE:
        found.append((b"P", rest[:LINE]))
        rest = rest[LINE:]
    if end and rest:
        found.append((b"F", rest))
    return rest, found


def copy_log(sources: dict[int, str], path: str) -> None:
    """Copy output to a log in CRI format (`time stream tag text`) until every source has ended. Rotate the log at
    LOG_LIMIT bytes and keep one old file. sources: descriptor -> name of the stream.
    """
    file, held = open(path, "ab", buffering=0), dict.fromkeys(sources, b"")
    size = os.fstat(file.fileno()).st_size  # an earlier run of the container wrote it
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    while held:
        for source, _ in poll.poll():
            chunk = os.read(source, 65536)
            held[source], found = records(held[source], chunk, not chunk)
            if not chunk:
                poll.unregister(source)
                del held[source]
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 10**9:09}Z"
            head = f"{stamp} {sources[source]} ".encode()
            size += file.write(b"".join(head + tag + b" " + text + b"\n" for tag, text in found)) or 0
            if size > LOG_LIMIT:
                file.close()
                os.rename(path, path + ".1")
                file, size = open(path, "ab", buffering=0), 0
    file.close()


def container(spec: dict[str, Any]) -> None:
    os.setsid()
    join(spec["pause"])
    check(libc.unshare(NEWPID), "unshare")
    pipes = {"stdout": os.pipe(), "stderr": os.pipe()}
    confined, setting_up = os.pipe()  # the child closes its end when nothing is left to do but exec
    child = os.fork()
    if child == 0:
        become(spec, pipes["stdout"][1], pipes["stderr"][1])
    for _, into in pipes.values():
        os.close(into)
    os.close(setting_up)
    os.read(confined, 1)  # before that, a command that enters the child would be in the machine's root
    os.close(confined)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    write(
        spec["state"],
        {
            "pid": child,
            "started": started(child),
            "shim": os.getpid(),
            "shim_started": started(os.getpid()),
            "since": time.time(),
        },
    )
    copy_log({out: stream for stream, (out, _) in pipes.items()}, spec["log"])
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    write(spec["exit"], {"code": code if code >= 0 else 128 - code, "signal": max(0, -code), "finished": time.time()})


# ---- a command in a running container


def exec_in(pid: int, words: list[str], *, terminal: bool = False) -> int:
    """Run `words` in the container whose first process is `pid`, and return the exit status: 127 for a missing program,
    128 + N after signal N. The command ends with this process. terminal: standard input becomes its terminal. It leads
    the session there, since a leader outside of the pid namespace is process 0 for a shell's job control.
    """
    spaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts", "ipc", "pid", "mnt")]
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY)
    for space in spaces:
        check(libc.setns(space, 0), "setns")
    os.fchdir(root)
    os.chroot(".")
    child = os.fork()  # a process enters a pid namespace by a fork
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            if terminal:
                import fcntl  # here: shims of containers, of which there are many, do without them
                import termios

                os.setsid()
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            drop_capabilities()
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            ordinary_signals()
            os.execvpe(words[0], words, os.environ)
        except OSError as err:
            os.write(2, f"podwire: exec: {words[0]!r}: {err.strerror}\n".encode())
            os._exit(127 if isinstance(err, FileNotFoundError) else 126)
    for number in (signal.SIGINT, signal.SIGQUIT):  # of the terminal: the command has them too, and decides
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: os.kill(child, got))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def main() -> None:
    if sys.argv[1] in ("exec", "exec-tty"):
        sys.exit(exec_in(int(sys.argv[2]), sys.argv[3:], terminal=sys.argv[1] == "exec-tty"))
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    disinherit()
    (sandbox if spec["kind"] == "sandbox" else container)(spec)


if __name__ == "__main__":
    main()
