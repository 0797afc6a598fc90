"""The compiled modules, under AddressSanitizer and UndefinedBehaviorSanitizer, in the tests that feed them everything:
good and spoiled DNS queries, the zone's table, answers of upstreams, requests in pieces.

netns-tests/test_sanitized.py has the programs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nativebuild import sanitized
from podwire_base.patience import patient

TESTS = (
    "cni/podwire_cni/tests/test_callers.py",
    "cni/podwire_cni/tests/test_prepared.py",
    "dns/podwire_dns/tests/test_batches.py",
    "dns/podwire_dns/tests/test_exchange.py",
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler, why = sanitized.compiler()
    if compiler is None:
        pytest.skip(f"no compiler with both sanitizers and Python's headers: {why}")
    folder = tmp_path_factory.mktemp("sanitized")
    sanitized.build(folder)
    return folder


@pytest.mark.long
def test_the_sanitizers_find_what_they_are_for(copy: Path) -> None:
    """That they are there and look at the module: a result that is too small is written over."""
    code = (
        "from podwire_cni.native import attach as a; m = a.library().module; small = m.ffi.new('char[8]')\n"
        "m.lib.attach_run(-1, 0, -1, -1, b'', 0, m.ffi.cast('struct attach_result *', small))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=sanitized.environment(copy), capture_output=True, text=True, check=False
    )
    assert done.returncode and "AddressSanitizer: heap-buffer-overflow" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("tests", TESTS)
def test_they_find_nothing_in_the_modules(copy: Path, tests: str) -> None:
    done = sanitized.run_tests(copy, [tests], patient(600))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
