"""The native program `podwire-beat`: it reads the beat of a role (../beat.py) for the probes of a container.

A probe runs every few seconds on every node, so it is a static program: an interpreter would take 20 ms of CPU each
time. The image has it as /usr/bin/podwire-beat.
"""

from __future__ import annotations

from pathlib import Path

from podwire_base import native

FOLDER = Path(__file__).parent


def beat_program() -> Path | None:
    """Returns the path of the compiled program, None if it is not compiled."""
    return native.program(FOLDER, "podwire-beat")
