"""Addresses that wiring gives before the API says so."""

from __future__ import annotations

import pytest

from podwire_base.role.asking import Asker
from podwire_base.role.judging import SOCKET, Asked, read
from podwire_policy.claims import Claims
from podwire_policy.testing.oracle import Object
from podwire_policy.testing.worlds import pod


def asked(verb: str = "ADD", container: str = "c1", uid: str = "u1", key: str = "x/p", ip: str = "10.244.0.9") -> Asked:
    return Asked(verb, container, key, uid, (ip,))


def starting(uid: str = "u1", ips: tuple[str, ...] = ("",)) -> Object:
    made = pod("x/p", {"app": "a"}, ips)
    made["metadata"]["uid"] = uid
    return made


def test_the_address_of_an_add_counts_until_its_del() -> None:
    objects = {"x/p": starting()}
    claims = Claims("n1", lambda: objects, lambda _: True)
    assert claims.pod("x/p") is None, "without an address nobody can be judged"
    assert claims.add(asked()) == "x/p"
    found = claims.pod("x/p")
    assert found is not None and found.ips == ("10.244.0.9",) and found.labels == (("app", "a"),)
    assert claims.remove(asked("DEL", container="older")) == "", "the DEL of a sandbox before this one"
    objects["x/p"] = starting(ips=("10.244.0.9",))
    assert claims.remove(asked("DEL")) == "x/p"
    assert claims.pod("x/p") is None, "the API still says the address, and another pod may have it"
    assert claims.add(asked(container="c2", ip="10.244.0.10")) == "x/p"
    found = claims.pod("x/p")
    assert found is not None and found.ips == ("10.244.0.10",)


def test_a_pod_of_the_same_name_does_not_get_the_address_of_the_one_before() -> None:
    objects = {"x/p": starting("u2")}
    claims = Claims("n1", lambda: objects, lambda _: True)
    claims.add(asked(uid="u1"))
    assert claims.pod("x/p") is None


@pytest.mark.parametrize("closed", [True, False])
def test_a_pod_that_the_api_does_not_have_yet(closed: bool) -> None:
    """It is judged without labels where no policy can select it, else not before its labels are known."""
    objects: dict[str, Object] = {}
    claims = Claims("n1", lambda: objects, lambda _: closed)
    claims.add(asked())
    assert (claims.settled("x/p"), claims.pod("x/p") is None) == (not closed, closed)
    objects["x/p"] = starting()
    assert claims.settled("x/p")


def test_a_question_is_read_as_it_was_asked() -> None:
    assert read(asked().line()) == asked()
    for line in (b"", b"{}", b'{"verb": "ADD", "container": "c", "pod": "", "uid": "", "ips": null}', b"[1]"):
        with pytest.raises(ValueError, match=r"."):
            read(line)


def test_nobody_is_asked_where_nobody_judges(tmp_path_factory: pytest.TempPathFactory) -> None:
    run_dir = tmp_path_factory.mktemp("r")
    asker = Asker(run_dir)
    assert not asker.there()
    (run_dir / SOCKET).touch()
    assert asker.there() and "does not answer" in asker.ask(asked())
