"""A process's title in `ps`; its environment stays unchanged."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.role.title import area

PROGRAM = """
import sys
from pathlib import Path
from podwire_base.role.title import set_title
set_title("podwire", *sys.argv[1:3])
set_title("podwire", *sys.argv[1:3])  # a child of a process that has a title already
for name in ("comm", "cmdline", "environ"):
    sys.stdout.buffer.write(Path(f"/proc/self/{name}").read_bytes() + b"|==|")
"""


@pytest.mark.parametrize(
    ("role", "node"), [("proxy", "node1"), ("dns-feeder", "n" * 63), ("proxy", "n" * 5000), ("ž" * 4000, "n")]
)
def test_the_title_fits_into_the_arguments_and_the_environment_stays(role: str, node: str) -> None:
    environment = {"PODWIRE_CLUSTER": "/run/podwire/x", "LONG": "y" * 3000}
    # The room is that of the arguments: the second title is longer than the first arguments.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, role, node], env=environment, capture_output=True, check=True, timeout=60
    )
    comm, shown, found = done.stdout.split(b"|==|")[:3]
    wanted = "\0".join(("podwire", role, node)).encode()
    assert comm.rstrip() == f"podwire-{role}".encode()[:15].rstrip()
    assert shown.rstrip(b"\0") == wanted[: len(shown) - 1]
    assert set(found.rstrip(b"\0").split(b"\0")) >= {f"{k}={v}".encode() for k, v in environment.items()}


def test_a_title_that_is_too_long_loses_its_end_only() -> None:
    program = PROGRAM.replace("*sys.argv[1:3]", "'proxy', 'n' * 9999")
    done = subprocess.run(
        [sys.executable, "-c", program], env={"MARK": "1" * 500}, capture_output=True, check=True, timeout=60
    )
    _, shown, found = done.stdout.split(b"|==|")[:3]
    assert shown.startswith(b"podwire\0proxy\0nnn")
    assert shown.endswith(b"n\0")
    assert b"MARK=" + b"1" * 500 in found.split(b"\0")


@given(st.text(), st.integers(1, 50))
def test_an_area_keeps_its_size_and_ends_with_zero(title: str, size: int) -> None:
    made = area(title, size)
    assert len(made) == size
    assert made[-1:] == b"\0"
    assert title.encode(errors="replace").startswith(made[: size - 1].rstrip(b"\0"))
