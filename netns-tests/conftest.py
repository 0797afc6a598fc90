"""netns-tests need root; without it they are left out and the run says so (make test does, and runs the rest)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.netns import Lab


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    here = Path(__file__).parent
    mark = pytest.mark.skip(reason="network namespaces need root")
    for item in items:
        if here in item.path.parents:
            item.add_marker(mark)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made
