"""The programs and modules to compile, and the commands that compile them. This module does no I/O.

A program is a static executable, linked with musl if musl is installed. A module is loaded into the interpreter by
cffi. A module uses Python's limited API, so one file serves all Python versions from 3.11 on. An object holds eBPF
programs for the kernel: the same bytes serve every little-endian machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

LIMITED_API = "0x030b0000"  # Python 3.11: requires-python of pyproject.toml
PYTHON_TAG = "cp311"


@dataclass(frozen=True, slots=True)
class Unit:
    """folder: a package's directory `native`, relative to the root of the source tree. The result goes to its
    subdirectory `bin`. stands_in: the replacement if the unit is not built.
    """

    name: str
    folder: str
    sources: tuple[str, ...]
    stands_in: str

    @property
    def output(self) -> str:
        """The path of the result, relative to the root."""
        return f"{self.folder}/bin/{self.name}"

    @property
    def missing(self) -> str:
        """The path of the text file with the reason if the unit is not built."""
        return f"{self.folder}/bin/{PurePosixPath(self.name).name.split('.')[0]}.missing"


@dataclass(frozen=True, slots=True)
class Program(Unit):
    """One executable."""


@dataclass(frozen=True, slots=True)
class Module(Unit):
    """package: the dotted name of the folder. sources: the headers in the order for cffi, then the C files."""

    package: str
    flags: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return self.name.split(".")[0]

    @property
    def headers(self) -> list[str]:
        return [source for source in self.sources if source.endswith(".h")]

    @property
    def c_files(self) -> list[str]:
        return [source for source in self.sources if source.endswith(".c")]


@dataclass(frozen=True, slots=True)
class Object(Unit):
    """eBPF programs, which clang alone compiles. sources: headers, then one C file."""


CNI, NODE, DNS = "cni/podwire_cni/native", "controlplane/podwire_node/native", "dns/podwire_dns/native"
ROLE, EBPF = "base/podwire_base/role/native", "proxy/podwire_proxy/ebpf/native"

PROGRAMS = (
    Program("podwire-cni", CNI, ("client.c",), "a Python program: each call of the plugin takes 20 ms more"),
    Program("podwire-pause", CNI, ("pause.c",), "a Python program: each pod takes 10 MB more"),
    Program("podwire-beat", ROLE, ("beat.c",), "nothing: the probes of deploy/ need the image, which has it"),
    Program("podwire-echo", NODE, ("echo.c",), "a Python program: the test server takes 50 ms more to start"),
)

MODULES = (
    Module(
        "_attach.abi3.so",
        CNI,
        ("attach.h", "request.h", "attach.c", "request.c"),
        "Python: pods are attached step by step",
        "podwire_cni.native",
    ),
    Module(
        "_packets.abi3.so",
        DNS,
        ("table.h", "batch.h", "exchange.h", "clock.h", "random.h", "table.c", "batch.c", "exchange.c"),
        "Python: the DNS server receives one packet at a time",
        "podwire_dns.native",
        ("-pthread",),
    ),
)

OBJECTS = (
    Object(
        "sock.bpf.o",
        EBPF,
        ("bpf.h", "look.h", "count.h", "sock.bpf.c"),
        "nothing: --backend ebpf has nftables serve everything",
    ),
    Object("bypass.bpf.o", EBPF, ("bpf.h", "look.h", "bypass.bpf.c"), "nothing: pods' packets take the usual way"),
    Object("drops.bpf.o", EBPF, ("bpf.h", "drops.bpf.c"), "nothing: `podwire drops` cannot run"),
)

EVERYTHING: tuple[Unit, ...] = (*PROGRAMS, *MODULES, *OBJECTS)

NOT_FOR_PYTHON = frozenset({"clock.h", "random.h"})  # cffi does not read these


# noseparate-code: the program has one segment instead of four, so it starts faster. A runtime starts the plugin for
# every call.
STATIC = ("-O2", "-static", "-Wl,-z,noseparate-code", "-s")
LOADED = ("-O2", "-s")
SANITIZED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def program_command(compiler: str, sources: Sequence[str], out: str, flags: Sequence[str] = STATIC) -> list[str]:
    return [compiler, *flags, "-o", out, *sources]


def preprocess_command(compiler: str, header: str) -> list[str]:
    """Return the command that prints the part of a header that cffi reads."""
    return [compiler, "-E", "-P", "-DPODWIRE_CDEF", header]


def module_command(
    compiler: str, unit: Module, sources: Sequence[str], include: Sequence[str], out: str, flags: Sequence[str] = LOADED
) -> list[str]:
    """Return the command that compiles a module. sources: cffi's C file and the unit's C files, each a separate
    translation unit. include: the directories of headers.
    """
    kind = ["-shared", "-fPIC", "-fvisibility=hidden", f"-DPy_LIMITED_API={LIMITED_API}"]
    return [compiler, *kind, *flags, *unit.flags, *(f"-I{folder}" for folder in include), "-o", out, *sources]


# -g0: no path of this machine is in an object. v3: 32 bit operations, which every kernel from 5.1 on has.
def object_command(compiler: str, source: str, out: str) -> list[str]:
    """Return the command that compiles an object."""
    return [
        compiler,
        "-O2",
        "-g0",
        "-target",
        "bpfel",
        "-mcpu=v3",
        # a number in a place of the stack that held a pointer: the verifier refuses it without CAP_PERFMON
        "-mllvm",
        "-no-stack-slot-sharing",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-c",
        "-o",
        out,
        source,
    ]


def wheel_tag(built: Sequence[Unit], platform: str) -> str | None:
    """Return the wheel's tag, None for a pure wheel if nothing that depends on the machine was built. platform: in the
    form of sysconfig.get_platform().
    """
    built = [unit for unit in built if not isinstance(unit, Object)]
    if not built:
        return None
    platform = platform.replace("-", "_").replace(".", "_")
    python = f"{PYTHON_TAG}-abi3" if any(isinstance(unit, Module) for unit in built) else "py3-none"
    return f"{python}-{platform}"
