"""Runs the iptables programs in a network namespace, and detects the variant that the host uses. I/O."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, get_args

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.netns import within
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kernel.reasons import Reason
from podwire_base.role import beat

from .layout import Chain, Rules, TableName
from .text import count_rules, parse

Variant = Literal["nft", "legacy"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
PATIENT = 30  # seconds that a user's command waits for the lock shared by all programs of legacy iptables
BUSY = 4  # exit status of the legacy programs: another program holds the lock
TRIES, PAUSE = 5, 0.02  # a role tries the lock so often, with so many seconds between; it repeats the restore later
SHORTEST = 1  # seconds, the minimum for -w: with -w 0, iptables-legacy-restore waits without limit
BUILT_IN = ("nat", "filter", "raw")
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_NAMES = {"ip": "iptables", "ip6": "ip6tables"}


class ProgramError(OSError):
    """An iptables program is missing or failed. The table at which a restore failed is unchanged, and so are the tables
    after it in the input.
    """


class ProgramBusy(ProgramError):
    """Another program holds the lock of legacy iptables. errno: EAGAIN."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EAGAIN, message)


def program(variant: Variant, family: Family, verb: Literal["save", "restore", ""]) -> str:
    """Returns the path of a program. verb: "" for iptables itself. Raises ProgramError if it is not installed."""
    name = f"{_NAMES[family]}-{variant}-{verb}".rstrip("-")
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise ProgramError(f"{name} is not installed; install the package iptables, or use --backend nftables")
    return found


def run(command: list[str], ns_fd: int | None, text: str | None = None) -> str:
    """Runs a program and returns its output. text: the program's standard input. Raises ProgramBusy, and ProgramError
    with the program's error message and the line of `text` whose number is in the message.
    """
    prefix = ["nsenter", f"--net=/proc/self/fd/{ns_fd}", "--"] if ns_fd is not None else []
    name = Path(command[0]).name
    with (
        _source(text) as source,
        subprocess.Popen(
            [*prefix, *command],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=() if ns_fd is None else (ns_fd,),
        ) as process,
    ):
        try:
            output, errors = _communicate(process)
        except BaseException:
            process.kill()
            raise
    if process.returncode == BUSY and "-legacy-" in command[0]:
        raise ProgramBusy(f"{name}: {_error_message(errors, '')}")
    if process.returncode:
        raise ProgramError(f"{name}: {_error_message(errors, text or '')}")
    return output


@contextlib.contextmanager
def _source(text: str | None) -> Iterator[IO[bytes] | None]:
    """Yields a file with the text for a program's standard input; None without a text.

    A pipe fails for a long text: a second communicate() after a timeout does not write the rest of the input, and the
    program waits for this rest for ever.
    """
    if text is None:
        yield None
        return
    with os.fdopen(os.memfd_create("restore"), "w+b") as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def _communicate(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Returns the program's standard output and standard error. The role's beat ticks while the program uses CPU time,
    so that the supervisor does not kill the role during a large restore.
    """
    used = 0
    while True:
        try:
            return process.communicate(timeout=beat.SECONDS)
        except subprocess.TimeoutExpired:
            if (now := _ticks(process.pid)) > used:
                used = now
                beat.tick(f"{process.args[0]} runs" if isinstance(process.args, list) else "")


def _ticks(pid: int) -> int:
    """Returns the CPU time of a process in clock ticks, 0 if the process does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _error_message(stderr: str, text: str) -> str:
    words = " ".join(line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("Try "))
    lines = text.splitlines()
    number = next(
        (int(word) for word in words.replace(":", " ").split() if word.isdecimal() and 0 < int(word) <= len(lines)), 0
    )
    return f"{words or 'failed without an error message'}" + (f" ({lines[number - 1]})" if number else "")


def save(variant: Variant, family: Family, ns_fd: int | None) -> str:
    """Returns the output of iptables-save for all existing tables. The call does not create a table."""
    return run([program(variant, family, "save")], ns_fd)


def restore(variant: Variant, family: Family, ns_fd: int | None, text: str, wait: int = 0) -> None:
    """Runs iptables-restore with `text` as its input. wait: maximum seconds for the lock of legacy iptables; 0: TRIES
    tries, then at most SHORTEST seconds.

    Raises ProgramBusy; the table that waited for the lock and the tables after it are then unchanged. Raises
    ProgramError.
    """
    command = program(variant, family, "restore")
    if variant == "legacy" and not wait and all(_wait_if_locked(pause) for pause in (*[PAUSE] * (TRIES - 1), 0)):
        raise ProgramBusy(f"{Path(command).name}: another program holds the lock {_lock()}")
    run([command, "--noflush", "-w", str(wait or SHORTEST)], ns_fd, text)


def _lock() -> str:
    return os.environ.get("XTABLES_LOCKFILE") or "/run/xtables.lock"


def _wait_if_locked(pause: float) -> bool:
    """Whether another program holds the lock. If so, the function sleeps `pause` seconds before it returns."""
    try:
        with open(_lock(), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(pause)
        return True
    except OSError:  # the lock file is missing or not accessible
        return False
    return False


def counted(variant: Variant, family: Family, ns_fd: int | None, table: TableName, chain: str, reason: Reason) -> int:
    """Returns the sum of the packet counts of the rules in a chain. Only rules with `reason` in the comment count."""
    command = [program(variant, family, ""), "-t", table, "-w", str(SHORTEST), "-nvxL", chain]
    return sum(int(line.split()[0]) for line in run(command, ns_fd).splitlines()[2:] if f"[{reason}] */" in line)


def legacy_tables(family: Family, ns_fd: int | None) -> tuple[str, ...]:
    """Returns the tables of legacy iptables in the namespace. The kernel creates such a table at its first use."""

    def read() -> tuple[str, ...]:
        try:
            return tuple(Path(f"/proc/thread-self/net/{family}_tables_names").read_text().split())
        except OSError:
            return ()

    return within(ns_fd, read)


def nft_tables(family: Family, ns_fd: int | None) -> tuple[str, ...]:
    """Returns those of the tables BUILT_IN that exist in nf_tables; () on a kernel without nf_tables."""
    if nft_socket.missing(ns_fd):
        return ()
    with nft_socket.Connection(ns_fd) as conn:
        return tuple(table.name for table in conn.tables() if table.family == family and table.name in BUILT_IN)


def present(variant: Variant, family: Family, ns_fd: int | None) -> bool:
    return bool(legacy_tables(family, ns_fd) if variant == "legacy" else nft_tables(family, ns_fd))


def found(ns_fd: int | None = None) -> Iterator[tuple[Variant, Family, dict[Chain, Rules]]]:
    """Yields (variant, family, chains) where PODWIRE-* chains exist. chains: as from text.parse. The function skips a
    variant whose programs are not installed, and a family without tables.
    """
    for variant in filter(installed, VARIANTS):
        for family in FAMILIES:
            if present(variant, family, ns_fd) and (chains := parse(save(variant, family, ns_fd))):
                yield variant, family, chains


def detect(ns_fd: int | None = None) -> Variant:
    """Returns the variant that the host uses, always an installed one: the variant with more foreign rules; at equality
    the variant with more PODWIRE-* rules; at equality of these too, nft.

    On a kernel without nf_tables, the result is legacy if legacy is installed. Raises ProgramError if neither variant
    is installed for both families.
    """
    counts: dict[Variant, tuple[int, int]] = {}
    for variant in VARIANTS:
        others = own = 0
        for family in FAMILIES:
            if present(variant, family, ns_fd) and installed(variant):
                text = save(variant, family, ns_fd)
                mine = sum(map(len, parse(text).values()))
                others, own = others + count_rules(text) - mine, own + mine
        counts[variant] = (others, own)
    usable = [variant for variant in VARIANTS if installed(variant)]
    if "legacy" in usable and nft_socket.missing(ns_fd):
        return "legacy"
    for family in FAMILIES if not usable else ():
        program("nft", family, "restore")  # raises the ProgramError that names the missing program
    return max(usable, key=lambda variant: (counts[variant], variant == "nft"))


def installed(variant: Variant) -> bool:
    return all(shutil.which(f"{_NAMES[family]}-{variant}-restore", path=_PATH) for family in FAMILIES)
