"""Who gets a node's certificate (identity.decide), as a table and as a property; and the records in the store."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.errors import StatusError
from podwire_base.kube.registry import of
from podwire_base.testing.builders import run
from podwire_controlplane.server import auth
from podwire_controlplane.server.identities import Identities
from podwire_controlplane.server.identity import (
    PREFIX,
    Claim,
    Grant,
    Issued,
    NewerLayout,
    Record,
    Refusal,
    accepts,
    decide,
    encode,
    granted,
    parse,
    revoked,
)
from podwire_controlplane.server.tokens import find
from podwire_controlplane.server.tokens import parse as parse_tokens
from podwire_controlplane.store.base import Conflict, Item
from podwire_controlplane.store.memory import MemoryStore

HELD = Record("n", "b", "key-b", {"a": 50.0, "b": 100.0})
GIVEN_AWAY = replace(HELD, issued={"b": 100.0}, closed=True)


@pytest.mark.parametrize(
    ("claim", "record", "exists", "code"),
    [
        (Claim("n", "k", token=""), None, False, 0),
        (Claim("n", "k", token=""), None, True, 409),
        (Claim("n", "k", token=""), HELD, False, 409),  # the Node was deleted
        (Claim("n", "k", token=""), HELD, True, 409),
        (Claim("n", "key-b", token=""), HELD, True, 0),  # its answer was lost
        (Claim("n", "", token=""), revoked(HELD, "n"), False, 409),
        (Claim("n", "k", token="n"), None, False, 0),
        (Claim("n", "k", token="n"), HELD, True, 0),
        (Claim("n", "k", token="n"), revoked(HELD, "n"), True, 0),
        (Claim("n", "k", token="m"), None, False, 403),
        (Claim("n", "k", signer="b"), HELD, True, 0),
        (Claim("n", "k", signer="b"), HELD, False, 0),
        (Claim("n", "k", signer="a"), HELD, True, 403),  # it was renewed already
        (Claim("n", "key-b", signer="a"), HELD, True, 0),  # by this request, whose answer was lost
        (Claim("n", "k", signer="old"), None, True, 0),  # from a version without records
        (Claim("n", "key-b", signer="a"), GIVEN_AWAY, True, 403),
        (Claim("n", "k", signer="b"), revoked(HELD, "n"), True, 403),
        (Claim("n", "k"), None, False, 401),
    ],
)
def test_decisions(claim: Claim, record: Record | None, exists: bool, code: int) -> None:
    verdict = decide(claim, record, exists=exists)
    assert (verdict.code if isinstance(verdict, Refusal) else 0) == code
    if isinstance(verdict, Grant):
        assert verdict.revokes == (claim.token == "n")


serials, keys = st.sampled_from("abcd"), st.sampled_from("xyz")
records = st.none() | st.builds(
    Record,
    st.just("n"),
    serials,
    keys,
    st.dictionaries(serials, st.just(100.0)),
    closed=st.booleans(),
).map(lambda r: revoked(r, "n") if r.closed and r.present not in r.issued else r)
claims = st.builds(
    Claim, st.just("n"), keys, st.sampled_from(["", "a", "b", "c", "d"]), st.sampled_from([None, "", "n", "m"])
)


@given(claims, records, st.booleans())
def test_nobody_gets_the_name_of_another(claim: Claim, record: Record | None, exists: bool) -> None:
    """A grant has a reason: a token for this name, a new name, a certificate that counts, or the key that is known."""
    verdict = decide(claim, record, exists=exists)
    if isinstance(verdict, Grant):
        own = bool(claim.signer) and accepts(record, claim.signer)
        new = claim.token == "" and record is None and not exists
        same = claim.token == "" and record is not None and record.key == claim.key != ""
        assert claim.token == "n" or new or own or same
        after = granted(record, claim, verdict, Issued("new", claim.key, 100.0), 1.0)
        assert accepts(after, "new") and after.present == "new" and parse(encode(after)) == after
        if claim.token == "n" and verdict.revokes:
            assert not any(accepts(after, serial) for serial in "abcd")
    assert not any(accepts(revoked(record, "n"), serial) for serial in "abcd")


def test_records_of_a_later_version_are_refused_by_name() -> None:
    later = json.dumps({"layout": 2, "node": "n7", "issued": []}).encode()
    with pytest.raises(NewerLayout, match=r"n7.*layout 2"):
        parse(later)
    for broken in (b"", b"{}", b"[]", b'{"layout": 1, "node": "n", "present": "", "key": "", "issued": 3}'):
        with pytest.raises(ValueError, match=r"."):
            parse(broken)

    async def body() -> None:
        store = MemoryStore()
        await store.put(PREFIX + "n7", later)
        with pytest.raises(NewerLayout):
            await Identities(store).start()

    run(body())


class Slow(MemoryStore):
    """Another task runs between each read and write."""

    async def get(self, key: str) -> Item | None:
        found = await super().get(key)
        await asyncio.sleep(0)
        return found


def signing(serial: str, key: str) -> tuple[str, Issued]:
    return serial, Issued(serial, key, 100.0)


def test_of_many_machines_one_gets_the_name() -> None:
    async def body() -> None:
        store = Slow()
        servers = [Identities(store), Identities(store)]
        for server in servers:
            await server.start()
        done = await asyncio.gather(
            *(
                servers[n % 2].claim(Claim("n", f"key-{n}", token=""), lambda n=n: signing(f"{n}", f"key-{n}"), 1.0)  # type: ignore[misc]
                for n in range(8)
            ),
            return_exceptions=True,
        )
        (given_to,) = [each for each in done if isinstance(each, str)]
        assert all(isinstance(each, StatusError) and each.code == 409 for each in done if each != given_to)
        await servers[0].revoke("n")
        user = auth.User("system:node:n", frozenset({auth.NODES}), given_to, 100.0)
        assert not servers[1].admits(user, 1.0), "every server over the store hears of it"

    run(body())


def test_a_revocation_beside_a_renewal_wins() -> None:
    """The renewal was decided before the revocation and is written after it: it is decided anew."""

    async def body() -> None:
        store = MemoryStore()
        server = Identities(store)
        await server.start()
        await server.claim(Claim("n", "k", token=""), lambda: signing("1", "k"), 1.0)
        put = store.put

        async def late(key: str, value: bytes, expect: int | None = None) -> Item:
            store.put = put  # type: ignore[method-assign]  # only the first write is late
            await server.revoke("n")
            return await put(key, value, expect)

        store.put = late  # type: ignore[method-assign]  # see above
        with pytest.raises(StatusError) as caught:
            await server.claim(Claim("n", "k2", signer="1"), lambda: signing("2", "k2"), 1.0)
        assert caught.value.code == 403
        assert not server.admits(auth.User("system:node:n", frozenset({auth.NODES}), "2", 100.0), 1.0)

    run(body())


def test_a_node_is_reserved_by_its_node_object_too() -> None:
    async def body() -> None:
        store = MemoryStore()
        await store.put(of("Node").key("", "n"), b"{}")
        with pytest.raises(StatusError, match="there is a Node"):
            await Identities(store).claim(Claim("n", "k", token=""), lambda: signing("1", "k"), 1.0)
        with pytest.raises(Conflict):
            await store.put(of("Node").key("", "n"), b"{}", expect=0)

    run(body())


def test_a_certificate_ends_on_an_open_connection() -> None:
    server = Identities(MemoryStore())
    peer = {
        "subject": ((("organizationName", auth.NODES),), (("commonName", "system:node:n"),)),
        "serialNumber": "0A1B",
        "notAfter": "Jan  5 09:34:43 2027 GMT",
    }
    user = auth.from_certificate(peer)
    assert user is not None and (user.serial, user.until) == ("a1b", 1799141683.0)
    assert server.admits(user, user.until - 1) and not server.admits(user, user.until)
    broken = auth.from_certificate({**peer, "notAfter": "soon"})
    assert broken is not None and not server.admits(broken, 1.0)


def test_tokens_of_the_file() -> None:
    rows = [{"token": "b" * 32, "made": 100.0, "expires": 200.0, "node": "n"}]
    text = json.dumps({"token": "a" * 32, "expires": 9e9, "bound": rows})
    tokens = parse_tokens(text, 50.0)
    assert [t.node for t in tokens] == ["", "n"]
    assert [find(tokens, c * 32, 150.0) for c in "abc"] == [*tokens, None]
    assert find(tokens, "b" * 32, 200.0) is None and find(tokens, "a" * 32, 50.0 + 86400) is None
