"""Leases: any sequence of calls, crashes and restarts agrees with a model that is obviously right."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from podwire_base.role.layout import NewerLayout
from podwire_cni.conf import parse_range
from podwire_cni.errors import CNIError
from podwire_cni.ipam.allocator import Allocator, Lease, PoolExhausted, Store
from podwire_cni.ipam.hostlocal import Young, take_over
from podwire_cni.ipam.ranges import capacity, podcidr_range, walk
from podwire_cni.ipam.store import LAYOUT_FILE, Busy, DirStore
from podwire_cni.testing.store import FakeStore
from podwire_cni.types import Attachment, IPAddress

SMALL = (parse_range({"subnet": "10.0.0.0/29"}, "r"),)
SPLIT = (
    parse_range({"subnet": "10.0.1.0/29", "rangeEnd": "10.0.1.2"}, "r"),
    parse_range({"subnet": "10.0.2.0/29", "rangeStart": "10.0.2.5"}, "r"),
)
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
        # as above
        assert [a for a, _ in walk(ranges, after)] == every[i + 1 :] + every[: i + 1]  # type: ignore[arg-type]


def test_a_64_is_not_listed() -> None:
    assert Allocator(FakeStore()).allocate([SIX], owner(1))[0][0].address == ip_address("fd00:1::2")


def test_round_robin_goes_on_behind_the_newest_lease_after_a_restart() -> None:
    held: dict[IPAddress, Lease] = {}
    first = Allocator(FakeStore(held))
    assert [str(first.allocate([SMALL], owner(i))[0][0].address) for i in (1, 2)] == ["10.0.0.2", "10.0.0.3"]
    first.release(owner(1))
    assert str(Allocator(FakeStore(held)).allocate([SMALL], owner(3))[0][0].address) == "10.0.0.4"


def test_a_pod_s_address_rests_before_another_pod_has_it() -> None:
    clock, held, rested = [100.0], dict[IPAddress, Lease](), dict[IPAddress, float]()

    def start() -> Allocator:
        return Allocator(FakeStore(held, rested, lambda: clock[0]), 30, lambda: clock[0])

    def take(allocator: Allocator, n: int) -> str:
        lease = allocator.allocate([SMALL], owner(n))[0][0]
        allocator.confirm(owner(n))
        return str(lease.address)

    allocator = start()
    assert [take(allocator, n) for n in range(4)] == [f"10.0.0.{n}" for n in (2, 3, 4, 5)]
    for n in (1, 0):
        allocator.release(owner(n))
        clock[0] += 1
    allocator = start()
    assert take(allocator, 5) == "10.0.0.6"
    assert take(allocator, 6) == "10.0.0.3", "no other address is left: the one that rested longest"
    clock[0] += 30
    allocator.release(owner(6))
    assert take(allocator, 7) == "10.0.0.2", "30 s are over"
    assert set(map(str, rested)) == {"10.0.0.3"}


def test_an_address_that_no_pod_had_need_not_rest() -> None:
    allocator = Allocator(FakeStore(), 30)
    taken = allocator.allocate([SMALL], owner(1))[0][0].address
    allocator.release(owner(1))
    assert not allocator.store.resting()
    assert allocator.allocate([SMALL], owner(2), wanted=[taken])


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
    rested: dict[IPAddress, float] = {}
    opened: list[DirStore] = []

    def again() -> Store:
        if request.param == "fake":
            return FakeStore(held, rested)
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


def test_store_notes_what_rests(reopen: Callable[[], Store]) -> None:
    store = reopen()
    others = [replace(LEASE, address=ip_address(f"10.0.0.{n}")) for n in (4, 3)]
    for lease in (*others, LEASE):
        assert store.reserve(lease)
    for lease in (*others, LEASE):
        store.release(lease.address, rest=lease is not LEASE)
    assert set(reopen().resting()) == {lease.address for lease in others} and list(reopen().leases()) == []
    times = list(reopen().resting().values())
    assert times == sorted(times)
    store = reopen()
    store.forget(others[0].address)
    store.forget(others[0].address)
    assert list(reopen().resting()) == [others[1].address]


# ---- host-local's directory ----


def test_host_local_is_taken_over(tmp_path: Path) -> None:
    theirs, held = tmp_path / "networks", dict[IPAddress, Lease]()
    theirs.mkdir()
    for name, text in (
        ("10.0.0.3", "a\r\neth0"),
        ("10.0.0.4", "b\n"),
        ("10.9.0.2", "far\r\neth0"),
        ("10.0.0.5", "old\r\neth0"),
        ("10.0.0.6", "thief\r\neth0"),
        ("last_reserved_ip.0", "10.0.0.4"),
        ("lock", ""),
    ):
        (theirs / name).write_text(text)
    os.utime(theirs / "10.0.0.5", (50, 50))
    allocator = Allocator(FakeStore(held))
    allocator.allocate([SMALL], owner(6), wanted=[ip_address("10.0.0.6")])

    def again() -> dict[str, str]:
        said = take_over(theirs, allocator, [SMALL], "boot", since=100)
        return dict(line.split(": ", 1) for line in said)

    assert again() == {
        "10.0.0.3 of a/eth0": "taken over",
        "10.0.0.4 of b/eth0": "taken over",
        "10.0.0.5 of old/eth0": "from before the boot, free",
        "10.0.0.6 of thief/eth0": "another pod has this address from podwire, left alone",
        "10.9.0.2 of far/eth0": "outside this node's podCIDRs, left alone",
    }
    assert {file.name for file in theirs.iterdir()} == {"10.0.0.6", "10.9.0.2", "last_reserved_ip.0", "lock"}
    assert len(again()) == 2, "a second run finds what the first one left"
    (theirs / "10.0.0.3").write_text("a\r\neth0")  # as after a crash between writing our lease and removing their file
    assert again()["10.0.0.3 of a/eth0"] == "taken over"
    lease = allocator.owned_by(Attachment("a", "eth0"))[0]
    assert (lease.origin, lease.wired, held[lease.address]) == ("host-local", True, lease)
    free = [str(allocator.allocate([SMALL], owner(n))[0][0].address) for n in range(2)]
    assert sorted(free) == ["10.0.0.2", "10.0.0.5"], "no address is given twice"
    assert allocator.release(Attachment("b", "eth0")) == [ip_address("10.0.0.4")]


@pytest.mark.parametrize("text", [b"", b" \r\n", b"\0\0\0", b"\xff\xfe", b"../x\r\neth0", b"c\r\neth0/../x"])
def test_a_file_of_host_local_that_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """It is free after a minute, and nobody gets its address meanwhile. What is written in that time counts."""
    for last in (2, 3):
        (tmp_path / f"10.0.0.{last}").write_bytes(text)
    (tmp_path / "10.0.0.4").mkdir()
    allocator, young = Allocator(FakeStore()), Young()

    def again() -> list[str]:
        return list(take_over(tmp_path, allocator, [SMALL], "boot", 0, young))

    assert [line.split(": ")[1] for line in again()] == ["names no container yet, looked at again in 60 s"] * 2
    assert again() == [] and allocator.leases() == []
    assert str(allocator.allocate([SMALL], owner(1))[0][0].address) == "10.0.0.4"
    (tmp_path / "10.0.0.3").write_text("late\r\neth0")
    assert again() == ["10.0.0.3 of late/eth0: taken over"]
    monkeypatch.setattr("time.monotonic", lambda real=time.monotonic: real() + 61)
    assert again() == ["10.0.0.2: names no container, free"]
    assert not young.since and allocator.withheld == set() and not (tmp_path / "10.0.0.2").exists()
    assert {lease.owner.container_id for lease in allocator.leases()} == {"late", owner(1).container_id}


def test_an_old_empty_file_of_host_local_is_free_at_once(tmp_path: Path) -> None:
    (tmp_path / "10.0.0.2").touch()
    os.utime(tmp_path / "10.0.0.2", (time.time() - 61,) * 2)
    assert list(take_over(tmp_path, Allocator(FakeStore()), [SMALL], "boot", 0)) == [
        "10.0.0.2: names no container, free"
    ]


def test_a_lease_of_nobody_that_an_earlier_version_took_over(tmp_path: Path) -> None:
    store = DirStore(tmp_path)
    assert store.reserve(replace(LEASE, owner=Attachment("", "eth0"), origin="host-local"))
    assert list(store.leases()) == [] and store.damaged() == {LEASE.address}


def test_a_file_that_appears_beside_the_leases_is_looked_into(tmp_path: Path) -> None:
    store = DirStore(tmp_path)
    (tmp_path / str(LEASE.address)).touch()
    assert not store.reserve(LEASE) and store.damaged() == {LEASE.address}
    store.release(LEASE.address)
    assert store.reserve(LEASE)


@pytest.mark.parametrize(
    "text", ['{"containerID": "c', "", "\0" * 300, "[" * 100_000, "{}", '{"containerID": 1' + "0" * 5000]
)
def test_an_unreadable_lease_keeps_its_address_until_it_is_released(tmp_path: Path, text: str) -> None:
    (tmp_path / "10.0.0.9").write_text(text)
    (tmp_path / "10.0.0.8").mkdir()
    store = DirStore(tmp_path)
    assert list(store.leases()) == [] and store.damaged() == {ip_address("10.0.0.9")}
    assert not store.reserve(replace(LEASE, address=ip_address("10.0.0.9")))
    assert not store.reserve(replace(LEASE, address=ip_address("10.0.0.8"))), "a file of its name is left alone"
    store.release(ip_address("10.0.0.9"))
    assert not store.damaged() and store.reserve(replace(LEASE, address=ip_address("10.0.0.9")))


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    store = DirStore(tmp_path / "leases")
    fresh = tmp_path / "leases" / f".new-{LEASE.address}"
    fresh.symlink_to("/dev/full")
    with pytest.raises(CNIError, match="cannot be written: No space left on device"):
        store.reserve(LEASE)
    assert [f.name for f in (tmp_path / "leases").iterdir() if f.name != LAYOUT_FILE] == [".lock"]
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
    assert {f.name for f in tmp_path.iterdir()} == {".lock", LAYOUT_FILE, "README"}, "a foreign file is left alone"
    store.close()


def test_one_process_has_the_leases(tmp_path: Path) -> None:
    store = DirStore(tmp_path)
    with pytest.raises(Busy):
        DirStore(tmp_path)
    store.close()
    DirStore(tmp_path).close()


class Leases(RuleBasedStateMachine):
    """Random adds, deletes and restarts, compared with a dict. `open` makes the store of the next process."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[Attachment, set[IPAddress]] = {}
        self.freed: set[IPAddress] = set()
        self.begin()
        self.restart()

    def begin(self) -> None:
        self.held: dict[IPAddress, Lease] = {}
        self.rested: dict[IPAddress, float] = {}

    def open(self) -> Store:
        return FakeStore(self.held, self.rested)

    @rule(n=st.integers(0, 9), both=st.booleans())
    def add(self, n: int, both: bool) -> None:
        if owner(n) in self.model:
            return
        sets = [SMALL, SPLIT] if both else [SMALL]
        used = {a for addresses in self.model.values() for a in addresses}
        room = all(capacity(s) > sum(any(a in r for r in s) for a in used) for s in sets)
        try:
            got = {lease.address for lease, _ in self.allocator.allocate(sets, owner(n))}
            self.allocator.confirm(owner(n))
        except PoolExhausted:
            assert not room
            return
        assert room and len(got) == len(sets) and not got & used
        for ranges, address in zip(sets, sorted(got, key=lambda a: a not in SMALL[0]), strict=True):
            rested = [a for a, _ in walk(ranges, None) if a not in used and a not in self.freed]
            assert address not in self.freed or not rested, "an address that rests is the last choice"
        self.freed -= got
        self.model[owner(n)] = got

    @rule(n=st.integers(0, 9))
    def release(self, n: int) -> None:
        gone = self.model.pop(owner(n), set())
        assert set(self.allocator.release(owner(n))) == gone
        self.freed |= gone

    @rule()
    def restart(self) -> None:
        self.allocator = Allocator(self.open(), 1e6, time.time if isinstance(self, LeasesOnDisk) else lambda: 0.0)

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


@pytest.mark.parametrize(
    ("text", "takes"), [("1", True), ("0\n", True), ("", True), ("x", True), ("2\n", False), ("9" * 5000, False)]
)
def test_leases_tell_their_layout(tmp_path: Path, text: str, takes: bool) -> None:
    """Version 0.2 wrote no number, and its leases are taken over. Those of a later version stay as they are."""
    (tmp_path / "10.0.0.9").write_text("of that version")
    DirStore(tmp_path).close()
    assert (tmp_path / LAYOUT_FILE).read_text() == "1\n"
    (tmp_path / LAYOUT_FILE).write_text(text)
    if takes:
        store = DirStore(tmp_path)
        assert (tmp_path / LAYOUT_FILE).read_text().strip() == "1"
        store.forget_layout()
        store.close()
        assert {f.name for f in tmp_path.iterdir()} == {".lock", "10.0.0.9"}
        return
    for _ in range(2):  # the lock is free again
        with pytest.raises(NewerLayout, match="later version of podwire wrote this with layout"):
            DirStore(tmp_path)
    assert (tmp_path / LAYOUT_FILE).read_text() == text and (tmp_path / "10.0.0.9").read_text() == "of that version"


def test_a_full_disk_does_not_keep_the_leases_from_their_agent(tmp_path: Path) -> None:
    (tmp_path / f".{LAYOUT_FILE}.{os.getpid()}").symlink_to("/dev/full")
    store = DirStore(tmp_path)
    assert not (tmp_path / LAYOUT_FILE).exists() and list(store.leases()) == []
    store.close()
