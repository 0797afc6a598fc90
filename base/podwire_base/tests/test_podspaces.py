"""The file by which pod wiring tells the Service proxy the pods' network namespaces."""

from __future__ import annotations

import pytest

from podwire_base.role.podspaces import PodSpace, decode, encode

ONE = PodSpace(4, 4026532001, "/run/netns/a", ("10.244.1.2", "fd00:244:1::2"), "shop/web")
TWO = PodSpace(4, 4026532002, "/run/netns/b", ("10.244.1.3",))


def test_what_is_written_is_read_and_the_order_does_not_matter() -> None:
    assert decode(encode([TWO, ONE])) == (ONE, TWO)
    assert encode([ONE, TWO, ONE]) == encode([TWO, ONE])


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "{}", "[1, null, []]", '[{"device": 4}]', '[{"device": "x", "inode": 1, "path": "", "ips": []}]'],
)
def test_a_damaged_file_names_no_namespace(text: str) -> None:
    assert decode(text) == ()


def test_a_file_of_the_version_before_names_no_pod() -> None:
    assert decode('[{"device": 4, "inode": 1, "path": "/x", "ips": []}]') == (PodSpace(4, 1, "/x"),)
