"""A rule's reason is read from its comment, and no part of a name can be mistaken for one."""

from __future__ import annotations

import pytest

from podwire_base.kernel.reasons import Reason, carrying, reason_of, without_reason


@pytest.mark.parametrize("reason", Reason)
def test_a_comment_carries_its_reason(reason: Reason) -> None:
    for comment in (carrying("words", reason), f"{carrying('words', reason)} #0a1b2c3d"):
        assert reason_of(comment) is reason
        assert without_reason(comment).startswith("words")
        assert "[" not in without_reason(comment)


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "words",
        "no-endpoints",
        "[no-endpoints] words",
        "words [made-up]",
        "words [no-endpoints] #x",
        "[NO_ENDPOINTS]",
    ],
)
def test_other_comments_carry_none(comment: str) -> None:
    assert reason_of(comment) is None
