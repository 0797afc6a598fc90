"""lab/transcripts.py: what a transcript may say, and that a difference is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.transcripts import Differs, Step, parse, play

TEXT = """\
# a title
$ echo one; echo two
^two$
!three
$ exit 3 [3]
1.34+ $ echo new
~ 1.34- $ echo old
$ cat
> x: 1
^x: 1$
"""


def test_a_transcript_is_read() -> None:
    first, second, new, old, cat = parse(TEXT)
    assert (first.line, first.command, first.status) == (2, "echo one; echo two", 0)
    assert (first.wanted, first.unwanted) == (["^two$"], ["three"])
    assert (second.command, second.status) == ("exit 3", 3)
    assert [new.meant_for(v) for v in ((1, 31), (1, 34), (1, 36))] == [False, True, True]
    assert [old.meant_for(v) for v in ((1, 31), (1, 34))] == [True, False]
    assert (old.retry, cat.stdin) == (True, ["x: 1"])
    with pytest.raises(ValueError, match="line 1 expects"):
        parse("^x$")


def test_it_is_played(tmp_path: Path) -> None:
    assert play(parse(TEXT), "1.31", tmp_path, os.environ) == 4
    assert play(parse(TEXT), "1.36", tmp_path, os.environ) == 4


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("$ false", "status 1 and not 0"),
        ("$ true [1]", "status 0 and not 1"),
        ("$ echo a\n^b$", "nothing is like"),
        ("$ echo a >&2\n!a", "something is like"),
    ],
)
def test_a_difference_is_told_with_its_line(line: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(Differs, match=rf"line 2: .*\n{why}"):
        play(parse(f"# title\n{line}"), "1.36", tmp_path, os.environ)


def test_what_comes_later_is_waited_for(tmp_path: Path) -> None:
    count = "echo x >> seen; wc -l < seen"
    assert play([Step(1, count, retry=True, wanted=["^3$"])], "1.36", tmp_path, os.environ) == 1
