"""The programs that need no agent, under AddressSanitizer and UndefinedBehaviorSanitizer, in the tests
that call them for real. tools/nativebuild/tests/test_sanitized.py has the modules alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.patience import patient
from nativebuild import sanitized

TESTS = (
    ["netns-tests/test_echo.py"],
    ["netns-tests/test_pause.py", "--deselect", "netns-tests/test_pause.py::test_native_pause_is_small"],
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
@pytest.mark.parametrize("tests", TESTS, ids=lambda words: Path(words[0]).stem)
def test_the_sanitizers_find_nothing(copy: Path, tests: list[str]) -> None:
    done = sanitized.run_tests(copy, tests, patient(900))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
