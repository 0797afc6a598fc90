"""Leases: any sequence of calls, crashes and restarts agrees with a model that is obviously right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from podwire_cni.conf import parse_range
from podwire_cni.errors import CNIError
from podwire_cni.ipam.allocator import Allocator, Lease, PoolExhausted, Store
from podwire_cni.ipam.ranges import capacity, podcidr_range, walk
from podwire_cni.ipam.store import Busy, DirStore
from podwire_cni.testing.store import FakeStore
from podwire_cni.types import Attachment, IPAddress

SMALL = (parse_range({"subnet": "10.0.0.0/29"}, "r"),)
SPLIT = (parse_range({"subnet": "10.0.1.0/29", "rangeEnd": "10.0.1.2"}, "r"),
         parse_range({"subnet": "10.0.2.0/29", "rangeStart": "10.0.2.5"}, "r"))
SIX = (podcidr_range(ip_network("fd00:1::/64")),)


def owner(n: int) -> Attachment:
    return Attachment(f"c{n}", "eth0")


def test_podcidr_leaves_gateway_and_ends_out() -> None:
    r = podcidr_range(ip_network("10.244.1.0/29"))
    assert [str(a) for a, _ in walk((r,), None)] == [f"10.244.1.{n}" for n in range(2, 7)]
    assert capacity((r,)) == 5


@pytest.mark.parametrize("ranges", [SMALL, SPLIT])
def test_walk_meets_each_address_once_wherever_it_begins(ranges: tuple[object, ...]) -> None:
    every = [a for a, _ in walk(ranges, None)]  # type: ignore[arg-type]  # parametrize erases the element type
    assert len(set(every)) == len(every) == capacity(ranges)  # type: ignore[arg-type]  # as above
    for i, after in enumerate(every):
        assert [a for a, _ in walk(ranges, after)] == every[i + 1:] + every[:i + 1]  # type: ignore[arg-type]  # as above


def test_a_64_is_not_listed() -> None:
    assert Allocator(FakeStore()).allocate([SIX], owner(1))[0][0].address == ip_address("fd00:1::2")


def test_round_robin_goes_on_behind_the_newest_lease_after_a_restart() -> None:
    held: dict[IPAddress, Lease] = {}
    first = Allocator(FakeStore(held))
    assert [str(first.allocate([SMALL], owner(i))[0][0].address) for i in (1, 2)] == ["10.0.0.2", "10.0.0.3"]
    first.release(owner(1))
    assert str(Allocator(FakeStore(held)).allocate([SMALL], owner(3))[0][0].address) == "10.0.0.4"


def test_all_sets_or_none() -> None:
    store = FakeStore()
    allocator = Allocator(store)
    for i in range(capacity(SMALL)):
        allocator.allocate([SMALL], owner(i))
    with pytest.raises(PoolExhausted, match=r"10\.0\.0\.0/29"):
        allocator.allocate([SPLIT, SMALL], owner(99))
    assert allocator.owned_by(owner(99)) == [] and len(store.held) == capacity(SMALL)


@pytest.mark.parametrize(("wanted", "code"), [("10.0.0.1", 11), ("10.0.0.2", 11), ("10.9.9.9", 7)])
def test_wanted_address_that_cannot_be_had(wanted: str, code: int) -> None:
    allocator = Allocator(FakeStore())
    allocator.allocate([SMALL], owner(1))
    with pytest.raises(CNIError) as caught:
        allocator.allocate([SMALL], owner(2), wanted=[ip_address(wanted)])
    assert int(caught.value.code) == code and allocator.owned_by(owner(2)) == []


# ---- the two stores, one table ----


@pytest.fixture(params=["dir", "fake"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens the store; again: as the next process would."""
    held: dict[IPAddress, Lease] = {}
    opened: list[DirStore] = []

    def again() -> Store:
        if request.param == "fake":
            return FakeStore(held)
        for store in opened:
            store.close()
        opened[:] = [DirStore(tmp_path / "leases")]
        return opened[0]

    return again


LEASE = Lease(ip_address("10.0.0.2"), owner(1), "default/a", "uid", "boot", "0a:58:00:00:00:01")


def test_store_keeps_what_it_was_given(reopen: Callable[[], Store]) -> None:
    store = reopen()
    other = replace(LEASE, address=ip_address("fd00::2"))
    assert store.reserve(LEASE) and store.reserve(other)
    assert not store.reserve(replace(LEASE, owner=owner(2))), "a held address is not given twice"
    store.wired(LEASE)
    assert set(reopen().leases()) == {replace(LEASE, wired=True), other}
    reopen().release(LEASE.address)
    reopen().release(LEASE.address)
    assert list(reopen().leases()) == [other]


def test_an_unreadable_lease_keeps_its_address_until_it_is_released(tmp_path: Path) -> None:
    (tmp_path / "10.0.0.9").write_text('{"containerID": "c')
    store = DirStore(tmp_path)
    assert list(store.leases()) == [] and store.damaged() == {ip_address("10.0.0.9")}
    assert not store.reserve(replace(LEASE, address=ip_address("10.0.0.9")))
    store.release(ip_address("10.0.0.9"))
    assert not store.damaged() and store.reserve(replace(LEASE, address=ip_address("10.0.0.9")))


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    store = DirStore(tmp_path / "leases")
    fresh = tmp_path / "leases" / f".new-{LEASE.address}"
    fresh.symlink_to("/dev/full")
    with pytest.raises(CNIError, match="cannot be written: No space left on device"):
        store.reserve(LEASE)
    assert [f.name for f in (tmp_path / "leases").iterdir()] == [".lock"]
    assert store.reserve(LEASE)
    (tmp_path / "leases" / str(LEASE.address)).unlink()
    (tmp_path / "leases" / str(LEASE.address)).symlink_to("/dev/full")
    with pytest.raises(CNIError, match="No space left on device"):
        store.wired(LEASE)


def test_disk_debris_is_no_lease(tmp_path: Path) -> None:
    (tmp_path / ".new-10.0.0.8").write_text("{}")
    (tmp_path / "README").write_text("hello")
    store = DirStore(tmp_path)
    assert list(store.leases()) == []
    assert {f.name for f in tmp_path.iterdir()} == {".lock", "README"}, "what is not ours is left alone"
    store.close()


def test_one_process_has_the_leases(tmp_path: Path) -> None:
    store = DirStore(tmp_path)
    with pytest.raises(Busy):
        DirStore(tmp_path)
    store.close()
    DirStore(tmp_path).close()


class Leases(RuleBasedStateMachine):
    """Random adds, deletes and restarts against a dict. `open` makes the store of the next process."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[Attachment, set[IPAddress]] = {}
        self.begin()
        self.allocator = Allocator(self.open())

    def begin(self) -> None:
        self.held: dict[IPAddress, Lease] = {}

    def open(self) -> Store:
        return FakeStore(self.held)

    @rule(n=st.integers(0, 9), both=st.booleans())
    def add(self, n: int, both: bool) -> None:
        if owner(n) in self.model:
            return
        sets = [SMALL, SPLIT] if both else [SMALL]
        used = {a for addresses in self.model.values() for a in addresses}
        room = all(capacity(s) > sum(any(a in r for r in s) for a in used) for s in sets)
        try:
            got = {lease.address for lease, _ in self.allocator.allocate(sets, owner(n))}
        except PoolExhausted:
            assert not room
            return
        assert room and len(got) == len(sets) and not got & used
        self.model[owner(n)] = got

    @rule(n=st.integers(0, 9))
    def release(self, n: int) -> None:
        assert set(self.allocator.release(owner(n))) == self.model.pop(owner(n), set())

    @rule()
    def restart(self) -> None:
        self.allocator = Allocator(self.open())

    @invariant()
    def agrees(self) -> None:
        assert {o: {lease.address for lease in self.allocator.owned_by(o)} for o in self.model} == self.model
        assert len(self.allocator.leases()) == sum(map(len, self.model.values()))


class LeasesOnDisk(Leases):
    """The same with real files."""

    def begin(self) -> None:
        self.directory = TemporaryDirectory()
        self.store: DirStore | None = None

    def open(self) -> Store:
        if self.store:
            self.store.close()
        self.store = DirStore(Path(self.directory.name))
        return self.store

    def teardown(self) -> None:
        if self.store:
            self.store.close()
        self.directory.cleanup()


TestLeases = Leases.TestCase
TestLeasesOnDisk = LeasesOnDisk.TestCase
TestLeasesOnDisk.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
