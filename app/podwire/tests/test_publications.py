"""The words of `podwire publish`, where a publication leads, and the relays that carry the bytes."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from podwire.cluster import publications as pub
from podwire.cluster import relay
from podwire.cluster.config import ClusterConfig, parse
from podwire.cluster.publisher import CannotPublish, check_free
from podwire_base.kube.meta import Object
from podwire_base.testing.builders import node
from podwire_proxy.testing.builders import port, service


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ("8080:web:80", "8080:default/web:80"),
        ("0:web:http", "0:default/web:http"),
        ("127.0.0.2:8080:shop/web:80/tcp", "127.0.0.2:8080:shop/web:80"),
        ("[::1]:53:kube-system/kube-dns:dns/UDP", "[::1]:53:kube-system/kube-dns:dns/udp"),
        ("0.0.0.0:1:a:65535/udp", "0.0.0.0:1:default/a:65535/udp"),
    ],
)
def test_words(words: str, whole: str) -> None:
    found = pub.parse(words)
    assert str(found) == whole and pub.parse(whole) == found
    assert pub.parse_place(str(found.place)) == found.place


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "expected [ADDRESS:]PORT:"),
        ("web:80", "expected [ADDRESS:]PORT:"),
        ("8080:web", "expected [ADDRESS:]PORT:"),
        ("8080:web:80/sctp", "only TCP and UDP"),
        ("8080:web:0", "'0' is neither number nor name"),
        ("8080:web:65536", "'65536' is neither"),
        ("8080:web:_x", "'_x' is neither"),
        ("65536:web:80", "'65536' is not a port of this machine"),
        ("٣:web:80", "'٣' is not a port of this machine"),
        ("host:8080:web:80", "'host' is not an address"),
        ("::1:8080:web:80", "in brackets: [::1]"),
        ("8080:a/b/c:80", "names no Service"),
        ("8080:Web:80", "names no Service"),
        ("8080::80", "names no Service"),
    ],
)
def test_bad_words_say_what_is_expected(words: str, why: str) -> None:
    with pytest.raises(pub.BadPublication) as caught:
        pub.parse(words)
    assert why in str(caught.value)


NODES = [node("n1"), node("n2"), node("n3", ready=False)]
WEB = service("web", "10.96.0.7", [{**port(80), "name": "http"}, {**port(53, "UDP"), "name": "dns"}])


def ends(*pairs: tuple[str, str], name: str = "http", ready: bool = True) -> Object:
    return {
        "metadata": {"namespace": "default", "name": "x", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": name, "port": 9376, "protocol": "UDP" if name == "dns" else "TCP"}],
        "endpoints": [{"addresses": [a], "nodeName": n, "conditions": {"ready": ready}} for a, n in pairs],
    }


def changed(**spec: Any) -> Object:
    return {**WEB, "spec": {**WEB["spec"], **spec}}


READY = [ends(("10.244.1.5", "n2"))]


@pytest.mark.parametrize(
    ("words", "found", "slices", "wanted"),
    [
        ("1:web:80", WEB, READY, pub.Target("10.96.0.7", 80, ("n1", "n2"))),
        ("1:web:http", WEB, READY, pub.Target("10.96.0.7", 80, ("n1", "n2"))),
        ("1:web:53/udp", WEB, [ends(("10.244.1.5", "n2"), name="dns")], pub.Target("10.96.0.7", 53, ("n1", "n2"))),
        ("1:web:80", changed(internalTrafficPolicy="Local"), READY, pub.Target("10.96.0.7", 80, ("n2",))),
        ("1:web:80", changed(clusterIP="None"), READY, pub.Target("10.244.1.5", 9376, ("n1", "n2"))),
        (
            "1:web:80",
            {**WEB, "metadata": {**WEB["metadata"], "labels": {"service.kubernetes.io/service-proxy-name": "x"}}},
            [],
            pub.Target("10.96.0.7", 80, ("n1", "n2")),
        ),
        ("1:web:80", None, READY, "there is no Service default/web"),
        ("1:web:81", WEB, READY, "has no port 81/tcp; its ports: 80/tcp (http), 53/udp (dns)"),
        ("1:web:80/udp", WEB, READY, "has no port 80/udp"),
        ("1:web:53/udp", WEB, READY, "no ready endpoint"),
        ("1:web:80", WEB, [ends(("10.244.1.5", "n2"), ready=False)], "no ready endpoint"),
        ("1:web:80", changed(type="ExternalName"), READY, "ExternalName"),
        ("1:web:80", changed(internalTrafficPolicy="Local"), [ends(("10.244.2.5", "n3"))], "on a Ready node"),
    ],
)
def test_where_it_leads(words: str, found: Object | None, slices: list[Object], wanted: pub.Target | str) -> None:
    got = pub.target(pub.parse(words), found, slices, NODES)
    if isinstance(wanted, str):
        assert wanted in got.why
    else:
        assert got == wanted


def test_no_node_is_ready() -> None:
    assert pub.target(pub.parse("1:web:80"), WEB, READY, NODES[2:]).why == "no node is Ready"


@pytest.mark.parametrize(
    ("ports", "wanted", "secure"),
    [
        ([{"port": 9000, "name": "grpc"}, {"port": 81, "name": "http-web"}], 81, False),
        ([{"port": 9000, "name": "grpc"}, {"port": 443}], 443, True),
        ([{"port": 9000, "appProtocol": "https"}, {"port": 9001}], 9000, True),
        ([{"port": 53, "protocol": "UDP"}], None, False),
        ([{"port": 5432, "name": "pg"}], 5432, False),
    ],
)
def test_the_port_that_a_browser_asks(ports: list[Object], wanted: int | None, secure: bool) -> None:
    found = pub.web_port({"spec": {"ports": ports}})
    assert (found or {}).get("port") == wanted
    assert found is None or pub.is_https(found) is secure


def test_urls() -> None:
    assert pub.url(pub.Place("", 80), False) == "http://127.0.0.1:80/"
    assert pub.url(pub.Place("::1", 443), True) == "https://[::1]:443/"
    assert pub.url(pub.Place("0.0.0.0", 81), False) == "http://127.0.0.1:81/"


def test_every_port_of_every_balancer() -> None:
    both = changed(
        type="LoadBalancer", ports=[{"port": 80}, {"port": 53, "protocol": "UDP"}, {"port": 9, "protocol": "SCTP"}]
    )
    assert [str(one) for one in pub.of_balancers([WEB, both])] == ["0:default/web:80", "0:default/web:53/udp"]


def test_the_clusters_record_keeps_them() -> None:
    config = ClusterConfig(publish=("8080:default/web:80",))
    assert parse(config.to_json()) == config
    assert parse('{"upstream_dns": []}') == ClusterConfig(layout=1)  # a record of the version before


def test_a_taken_port_is_named_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(CannotPublish, match=f"port {number} is taken by another program"):
            check_free([pub.parse(f"{number}:web:80")])
    with pytest.raises(CannotPublish, match=r"203\.0\.113\.9 is not an address of this machine"):
        check_free([pub.parse("203.0.113.9:8080:web:80")])
    with pytest.raises(CannotPublish, match="given twice"):
        check_free([pub.parse("127.0.0.1:45671:web:80"), pub.parse("45671:web:81")])


# ---- relays


def relayed(place: pub.Place, dial: relay.Dial, client: Callable[[relay.Relay], object]) -> object:
    """Run `client` in a thread while a relay serves."""

    async def body() -> object:
        sockets, real = relay.bind(place)
        made = relay.serve(sockets, real, dial)
        try:
            return await asyncio.wait_for(asyncio.to_thread(client, made), 20)
        finally:
            made.close()

    return asyncio.run(body())


def dialing(address: tuple[str, int], kind: socket.SocketKind) -> relay.Dial:
    async def dial() -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        return sock

    return dial


def test_tcp_carries_both_ways_and_half_closes() -> None:
    data = bytes(range(256)) * 40_000

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            got = bytearray()
            while chunk := sock.recv(65536):
                got += chunk
            sock.sendall(bytes(reversed(got)))  # only after the client's half is closed

    def client(made: relay.Relay, address: str) -> bytes:
        with socket.create_connection((address, made.place.port), 10) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            got = bytearray()
            while chunk := sock.recv(65536):
                got += chunk
            return bytes(got)

    for address in ("127.0.0.1", "::1"):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=serve, args=(listener,))
            thread.start()
            got = relayed(
                pub.Place("", 0), dialing(listener.getsockname(), socket.SOCK_STREAM), partial(client, address=address)
            )
            thread.join()
        assert got == bytes(reversed(data))


def test_a_refused_target_and_a_reset_reach_the_client_as_resets() -> None:
    async def refused() -> socket.socket:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody")

    def client(made: relay.Relay) -> bytes:
        with socket.create_connection(("127.0.0.1", made.place.port), 10) as sock:
            return sock.recv(10)

    with pytest.raises(ConnectionResetError):
        relayed(pub.Place("127.0.0.1", 0), refused, client)

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with pytest.raises(ConnectionResetError):
            relayed(pub.Place("127.0.0.1", 0), dialing(listener.getsockname(), socket.SOCK_STREAM), client)
        thread.join()


def test_udp_keeps_clients_apart() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def echo() -> None:
            for _ in range(6):
                data, address = server.recvfrom(100)
                server.sendto(data + f" {address[1]}".encode(), address)

        thread = threading.Thread(target=echo)
        thread.start()

        def client(made: relay.Relay) -> None:
            socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
            for round_ in (b"a", b"b"):
                for n, sock in enumerate(socks):
                    sock.settimeout(10)
                    sock.sendto(round_ + b"%d" % n, ("127.0.0.1", made.place.port))
                    got.append(sock.recv(100))
            for sock in socks:
                sock.close()
            assert made.connections == 3

        got: list[bytes] = []
        relayed(pub.Place("", 0, "UDP"), dialing(server.getsockname(), socket.SOCK_DGRAM), client)
        thread.join()
    assert [text.split()[0] for text in got] == [b"a0", b"a1", b"a2", b"b0", b"b1", b"b2"]
    ports = [text.split()[1] for text in got]
    assert len(set(ports)) == 3 and ports[:3] == ports[3:]


def test_closing_ends_the_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def body() -> bytes:
            sockets, place = relay.bind(pub.Place("127.0.0.1", 0))
            made = relay.serve(sockets, place, dialing(listener.getsockname(), socket.SOCK_STREAM))
            reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
            writer.write(b"x")
            inner, _ = await asyncio.to_thread(listener.accept)
            made.close()
            try:
                return await asyncio.wait_for(reader.read(), 10)
            except ConnectionResetError:
                return b""
            finally:
                writer.close()
                inner.close()

        assert asyncio.run(body()) == b""
