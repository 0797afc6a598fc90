"""The compiled modules, under AddressSanitizer and UndefinedBehaviorSanitizer, in the tests that feed them everything:
good and spoiled DNS queries, the zone's table, answers of upstreams, requests in pieces.

The plugin binary is here, too; netns-tests/test_sanitized.py has the other programs.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from nativebuild import sanitized
from nativebuild.units import PROGRAMS
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
    """The sanitizers are active and check the module: this test writes beyond a result that is too small."""
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


@pytest.mark.long
def test_they_find_nothing_in_the_plugin_binary(copy: Path, tmp_path: Path) -> None:
    """Valid and corrupted configurations; no agent listens, so each call ends with the program's own answer."""
    rand = random.Random(7)
    whole = (
        b'{"cniVersion":"1.0.0","name":"n","type":"podwire-cni","socket":"/nowhere/\\"s","standalone":false,'
        b'"a":{"socket":["x"]},"prevResult":{"ips":[{"address":"10.0.0.1/8"}]}}'
    )
    texts = [b"", whole, b'{"cniVersion":"' + b"9" * 5000, b'{"socket":"' + b"x" * 107 + b'"}', b"[" * 3000]
    texts += [whole[: rand.randrange(len(whole))] for _ in range(20)]
    texts += [bytes(rand.choice((byte, rand.randrange(256))) for byte in whole) for _ in range(20)]
    program = copy / PROGRAMS[0].output
    loopback = tmp_path / "loopback"
    loopback.symlink_to(program)
    for text in texts:
        for path, command in ((program, "ADD"), (program, "DEL"), (program, "VERSION"), (loopback, "DEL")):
            env = {"CNI_COMMAND": command, "CNI_NETNS": f"/nowhere/\u00e4{text[:20]!r}", "PODWIRE_CNI_SOCKET": ""}
            done = subprocess.run([path], input=text, env=env, capture_output=True, check=False)
            assert done.returncode in (0, 1) and done.stderr == b"", (text, command, done.stderr[-2000:])
