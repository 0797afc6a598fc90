"""The server without privileges, in a process of its own, and the helper that keeps them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import pytest

from podwire_base.patience import patient
from podwire_base.role import privileges
from podwire_base.role.helper import Helper, answer_to
from podwire_base.testing.ports import free_port
from podwire_dns import host
from podwire_dns.config import BadConfig, DnsConfig
from podwire_dns.rights import Rights, readable_by_others
from podwire_dns.sources import Sources

root = pytest.mark.skipif(os.geteuid() != 0 or not privileges.can_drop(), reason="needs root, to give it up")
PROGRAM = """
import sys
from pathlib import Path
from podwire_dns.config import DnsConfig
from podwire_dns.role import run

run(DnsConfig("n1", None, Path(sys.argv[1]), notrack=False, corefile=sys.argv[1] + "/Corefile", upstreams=()))
"""
PARENT = """
import subprocess, sys
from podwire_base.role.supervisor import Role, Supervisor
from pathlib import Path

def work():
    exec(sys.argv[2])

Supervisor([Role("dns", work)], Path(sys.argv[1]) / "state.json").run()
"""


class Running:
    def __init__(self, folder: Path, program: str = PROGRAM, *more: str) -> None:
        self.folder = folder
        self.log = folder / "log"
        with self.log.open("ab") as log:
            groups = [0, 4711] if os.geteuid() == 0 else None  # root's further groups, which the server must not keep
            words = [sys.executable, "-c", program, str(folder), *more]
            self.process = subprocess.Popen(words, stderr=log, extra_groups=groups)

    def ask(self, port: int, name: str = "a.example.", *, tcp: bool = False) -> str:
        """Returns the address in the answer; "" if there is no answer."""
        query = dns.message.make_query(name, "A")
        with contextlib.suppress(OSError, dns.exception.DNSException, EOFError):
            answer = (dns.query.tcp if tcp else dns.query.udp)(query, "127.0.0.1", port=port, timeout=patient(0.5))
            return str(answer.answer[0][0]) if answer.answer else ""
        return ""

    def status(self, pid: int) -> dict[str, str]:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}

    def ended(self, pid: int) -> bool:
        """Whether the process ended; its parent may not have asked for its status yet."""
        try:
            return self.status(pid)["State"][0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def children(self, pid: int) -> list[int]:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def corefile(folder: Path, port: int, address: str) -> None:
    fresh = folder / "Corefile.new"
    fresh.write_text(f".:{port} {{\n  bind 127.0.0.1\n  hosts {{\n    {address} a.example\n  }}\n}}\n")
    fresh.rename(folder / "Corefile")


def until(holds: Callable[[], bool], what: str | Callable[[], str]) -> None:
    end = time.monotonic() + patient(20)
    while time.monotonic() < end:
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError(what if isinstance(what, str) else what())


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="podwire-rights-"))  # for root alone, as an administrator's files may be
    yield made
    shutil.rmtree(made)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def begin(*words: str) -> Running:
        made.append(Running(folder, *words))
        return made[-1]

    yield begin
    for one in made:
        one.process.terminate()
        try:
            one.process.wait(patient(10))
        finally:
            one.process.kill()


@root
def test_the_server_keeps_nothing_but_its_sockets_and_a_reload_opens_others(
    folder: Path, start: Callable[..., Running]
) -> None:
    first = free_port()
    corefile(folder, first, "192.0.2.1")
    one = start()
    until(lambda: one.ask(first) == "192.0.2.1", one.log.read_text)
    found = one.status(one.process.pid)
    assert found["Uid"].split() == found["Gid"].split() == [str(DnsConfig("", None, folder).user)] * 4
    assert found["Groups"] == "" and found["NoNewPrivs"] == "1"
    assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    for thread in Path(f"/proc/{one.process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            assert "\nCapEff:\t0000000000000000\n" in (thread / "status").read_text(), (
                "threads have rights of their own"
            )
    (helper,) = one.children(one.process.pid)
    assert one.status(helper)["Uid"].split()[0] == "0"
    for _ in range(3):  # another program may take the port before the server does
        corefile(folder, second := free_port(), "192.0.2.2")
        one.process.send_signal(signal.SIGHUP)
        until(lambda: one.ask(second) != "" or f"port {second}: Address" in one.log.read_text(), one.log.read_text)
        if f"port {second}: Address" not in one.log.read_text():
            break
    for tcp in (False, True):
        until(lambda tcp=tcp: one.ask(second, tcp=tcp) == "192.0.2.2", one.log.read_text)  # type: ignore[misc]  # bound
    until(lambda: json.loads((folder / "status" / "dns.json").read_text())["pid"] == one.process.pid, "its status")
    one.process.terminate()
    assert one.process.wait(patient(20)) == 0
    until(lambda: one.ended(helper), "the helper ends too")


@root
def test_without_its_helper_the_server_goes_on(folder: Path, start: Callable[..., Running]) -> None:
    port = free_port()
    corefile(folder, port, "192.0.2.1")
    one = start()
    until(lambda: one.ask(port) == "192.0.2.1", one.log.read_text)
    (helper,) = one.children(one.process.pid)
    os.kill(helper, signal.SIGKILL)
    corefile(folder, free_port(), "192.0.2.2")
    one.process.send_signal(signal.SIGHUP)
    until(lambda: "the privileged helper" in one.log.read_text(), "it says so")
    assert one.ask(port) == "192.0.2.1" and one.process.poll() is None


@root
def test_it_still_ends_with_its_supervisor(folder: Path, start: Callable[..., Running]) -> None:
    """A change of user takes the signal of the parent's death away."""
    port = free_port()
    corefile(folder, port, "192.0.2.1")
    one = start(PARENT, PROGRAM)
    until(lambda: one.ask(port) == "192.0.2.1", one.log.read_text)
    (server,) = one.children(one.process.pid)
    assert one.status(server)["Uid"].split()[0] != "0"
    one.process.kill()
    one.process.wait()
    until(lambda: one.ask(port) == "", "nobody answers")


# ---- what the helper does


def rights(folder: Path) -> Rights:
    config = DnsConfig("n1", None, folder, listen=("127.0.0.1",), port=5353, upstreams=())
    return Rights(Sources(config), config)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("open_socket", ["127.0.0.1", 22, socket.SOCK_STREAM]),
        ("open_socket", ["127.0.0.9", 5353, socket.SOCK_DGRAM]),
        ("ensure_addresses", [["127.0.0.1", "192.0.2.1"]]),
        ("apply_notrack", [["192.0.2.1"], 5353]),
        ("drop_addresses", [["10.0.0.1"], 5353]),
        ("has_sibling", ["127.0.0.1", 80]),
        ("cleanup", [["127.0.0.1"]]),
        ("open", ["/etc/shadow"]),
        ("stamp", ["/etc/shadow"]),
        ("fitting", ["/root/*"]),
        ("status", ["x" * 100_000]),
    ],
)
def test_the_helper_refuses_what_the_settings_have_not(tmp_path: Path, name: str, args: list[object]) -> None:
    raw, passed = answer_to(json.dumps([1, name, *args]).encode(), rights(tmp_path).calls())
    assert json.loads(raw)["errno"] in (errno.EPERM, errno.EMSGSIZE) and passed is None


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"{}",
        b"[]",
        b'[1, "open_socket"]',
        b'[1, "open_socket", "x", "y", 1]',
        b'[1, "lease", "../../etc/passwd"]',
        b"\xff",
    ],
)
def test_a_misshapen_request_is_an_error_and_no_more(tmp_path: Path, request_: bytes) -> None:
    raw, passed = answer_to(request_, rights(tmp_path).calls())
    assert json.loads(raw)["errno"] and passed is None


def test_the_helper_follows_the_settings(tmp_path: Path) -> None:
    """It reads new settings itself when the server asks for what the old ones have not."""
    port = free_port()
    corefile(tmp_path, 5353, "192.0.2.1")
    base = DnsConfig("n1", None, tmp_path, corefile=str(tmp_path / "Corefile"), upstreams=())
    own = Rights(Sources(base), Sources(base).load())
    (tmp_path / "Corefile").write_text(f".:{port} {{\n  bind 127.0.0.2\n}}\n")
    raw, passed = answer_to(json.dumps([1, "open_socket", "127.0.0.2", port, socket.SOCK_DGRAM]).encode(), own.calls())
    assert json.loads(raw) == {"number": 1, "value": "socket"} and isinstance(passed, socket.socket)
    assert passed.getsockname() == ("127.0.0.2", port)
    passed.close()
    assert own.addresses == {"127.0.0.1", "127.0.0.2"}, "the old address may be taken off"


def test_files_that_the_settings_name_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more.conf").write_text("hosts " + str(tmp_path / "hosts") + "\n")
    (tmp_path / "hosts").write_text("192.0.2.9 big.example\n" + "# filled\n" * 50_000)  # more than one message
    (tmp_path / "Corefile").write_text(f". {{\n  bind 127.0.0.1\n  import {tmp_path}/*.conf\n}}\n")
    base = DnsConfig("n1", None, tmp_path, corefile=str(tmp_path / "Corefile"), upstreams=())
    wanted = Sources(base).load()
    helper = Helper(Rights(Sources(base), wanted).calls(), ("dns-helper",))
    monkeypatch.setattr(host, "_helpers", [helper])
    sources = Sources(base)
    assert sources.load() == wanted and len(wanted.blocks[0].hosts[0].text) > 400_000
    assert not sources.changed(corefile=True) and not sources.changed(corefile=False)
    (tmp_path / "hosts").write_text("192.0.2.10 big.example\n")
    (tmp_path / "other.conf").write_text("")
    assert sources.changed(corefile=True) and sources.changed(corefile=False)
    (tmp_path / "hosts").unlink()  # a file that is not there has no stamp, and that is one too
    sources.load()
    assert any("it counts as empty" in note for note in sources.notes) and not sources.changed(corefile=False)
    (tmp_path / "Corefile").unlink()
    with pytest.raises(BadConfig, match="Corefile: No such file"):
        sources.load()
    helper.close()
    os.waitpid(helper.pid, 0)


def test_calls_go_through_a_real_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cni" / "leases").mkdir(parents=True)
    (tmp_path / "cni" / "leases" / "10.0.0.7").write_text("lease")
    port = free_port()
    config = DnsConfig("n1", None, tmp_path, listen=("127.0.0.1",), port=port)
    helper = Helper(Rights(Sources(config), config).calls(), ("dns-helper", "n1"))
    monkeypatch.setattr(host, "_helpers", [helper])
    with host.open_socket("127.0.0.1", port, socket.SOCK_STREAM) as sock:
        assert sock.getsockname() == ("127.0.0.1", port)
        assert not host.has_sibling("127.0.0.1", port), "that is another protocol"
        with socket.create_connection(("127.0.0.1", port)):
            pass
    assert helper.call("lease", "10.0.0.7") == "lease"
    with pytest.raises(FileNotFoundError):
        helper.call("lease", "10.0.0.8")
    with pytest.raises(OSError, match="no address"):
        host.open_socket("127.0.0.1", 1, socket.SOCK_STREAM)
    helper.close()
    with pytest.raises(OSError, match="helper"):
        helper.call("lease", "10.0.0.7")
    os.waitpid(helper.pid, 0)


def test_a_fork_has_a_connection_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "cni" / "leases").mkdir(parents=True)
    (tmp_path / "cni" / "leases" / "10.0.0.7").write_text("lease")
    config = DnsConfig("n1", None, tmp_path, listen=("127.0.0.1",), port=free_port())
    helper = Helper(Rights(Sources(config), config).calls(), ("dns-helper", "n1"))
    twin = helper.another()
    with pytest.raises(OSError, match="another process"):
        twin.call("lease", "10.0.0.7")
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            twin.adopt()
            for _ in range(200):  # answers must not get mixed up with those of the other process
                assert twin.call("lease", "10.0.0.7") == "lease"
            with pytest.raises(OSError, match="no address"):
                twin.call("open_socket", "127.0.0.1", 1, int(socket.SOCK_DGRAM))
            os.write(writer, b"good")
        finally:
            os._exit(0)
    twin.close_here()
    for _ in range(200):
        with pytest.raises(FileNotFoundError):
            helper.call("lease", "10.0.0.8")
    os.waitpid(pid, 0)
    os.close(writer)
    assert os.read(reader, 4) == b"good"
    os.close(reader)
    helper.close()
    os.waitpid(helper.pid, 0)


def test_paths_that_others_reach(tmp_path: Path) -> None:
    assert readable_by_others(Path("/usr"))
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("")
    assert not readable_by_others(tmp_path / "file")


def test_the_native_code_is_loaded_while_its_folder_can_be_read(tmp_path: Path) -> None:
    """The server's user cannot read a checkout below /root."""
    program = """
import sys
from pathlib import Path
from podwire_dns import host, native, rights, role
from podwire_dns.config import DnsConfig

def give_up(*_):
    print(native.library.cache_info().currsize)
    sys.exit()

rights.give_up, host.prepare = give_up, lambda *_, **__: None
role.run(DnsConfig("n1", None, Path(sys.argv[1]), notrack=False, upstreams=()))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
