"""process_* of a metrics page."""

from __future__ import annotations

import os
import time
from pathlib import Path

from podwire_base.role import process
from podwire_base.role.metrics import Page


def test_the_figures_are_those_of_this_process() -> None:
    before = process.figures()
    with Path("/dev/null").open() as _one, Path("/dev/null").open() as _two:
        found = process.figures()
    assert found.descriptors == before.descriptors + 2
    assert found.descriptor_limit == float(os.sysconf("SC_OPEN_MAX"))
    assert found.virtual >= found.resident > 1 << 20
    assert 0 < found.cpu < 3600
    assert 0 <= time.time() - found.started < 86400
    assert abs(found.started - before.started) < 0.1


def test_the_page_has_the_names_of_the_client_libraries() -> None:
    page = Page()
    page.process(process.figures())
    names = [line.split()[2] for line in page.lines if line.startswith("# TYPE")]
    assert names == [
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_virtual_memory_bytes",
        "process_virtual_memory_max_bytes",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ]
