"""What the role keeps of a Pod: enough for its facts, and no more than once."""

from __future__ import annotations

import copy
import sys
from random import Random

from podwire_policy import convert
from podwire_policy.testing import table
from podwire_policy.testing.worlds import Chance


def test_a_trimmed_pod_means_the_same() -> None:
    chance = Chance(Random(3))
    for _ in range(12):
        for pod in chance.world().pods.values():
            before = copy.deepcopy(pod)
            kept = convert.trimmed(pod)
            assert pod == before
            assert convert.pod(kept) == convert.pod(pod)
            assert convert.trimmed(kept) == kept


def test_pods_that_are_alike_share_what_is_equal() -> None:
    first, second = (convert.trimmed(copy.deepcopy(table.world().pods["x/a"])) for _ in "ab")
    assert first == second
    assert first["metadata"]["labels"] is second["metadata"]["labels"]
    assert first["spec"].get("containers") is second["spec"].get("containers")
    assert sys.getsizeof(first) < 1000


def test_a_text_is_never_taken_for_a_list_with_equal_words() -> None:
    pod = copy.deepcopy(table.world().pods["x/a"])
    words = repr(convert.trimmed(pod)["metadata"]["labels"])
    assert convert.trimmed({**pod, "spec": {**pod["spec"], "nodeName": words}})["spec"]["nodeName"] == words
