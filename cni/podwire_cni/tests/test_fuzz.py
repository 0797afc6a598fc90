"""Any input on stdin and in CNI_* gives no exception, one JSON object or nothing on stdout, and the right exit
status.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from podwire_base.testing.counts import examples
from podwire_cni import skel
from podwire_cni.call import COMMANDS
from podwire_cni.commands import Sandbox
from podwire_cni.types import VERSIONS

from .test_verbs import Host

CASES = examples(200, 20_000)
KEYS = [
    "cniVersion",
    "name",
    "type",
    "mtu",
    "ipam",
    "dns",
    "args",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "socket",
    "ipMasq",
    "standalone",
    "ranges",
    "subnet",
    "rangeStart",
    "gateway",
    "routes",
    "dst",
    "gw",
    "portMappings",
    "hostPort",
    "containerPort",
    "protocol",
    "hostIP",
    "bandwidth",
    "ingressRate",
    "egressBurst",
    "ips",
    "mac",
    "ipRanges",
    "interfaces",
    "address",
    "interface",
    "sandbox",
    "cni.dev/valid-attachments",
    "containerID",
    "ifname",
    "search",
    "bridge",
    "addressing",
    "isGateway",
    "nonMasqueradeCIDRs",
    "aliases",
    "cni",
]
VALUES = [
    "",
    "1.1.0",
    "0.4.0",
    "podwire",
    "10.244.1.0/28",
    "10.244.1.5",
    "10.244.1.5/32",
    "0.0.0.0/0",
    "fd00::1",
    "tcp",
    "udp",
    "0a:58:0a:f4:01:05",
    "eth0",
    "c1",
    "subnet",
    "/proc/1/ns/net",
    "podwire-cni",
    "\0",
    "x" * 300,
]
LEAF = st.sampled_from(VALUES) | st.none() | st.booleans() | st.integers(-1, 2**64) | st.floats() | st.text(max_size=5)
ANY = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
# Nearly valid configurations get further than noise does.
GOOD: dict[str, Any] = {"cniVersion": "1.1.0", "name": "podwire", "type": "podwire-cni"}
CONF = st.dictionaries(st.sampled_from(KEYS), ANY, max_size=5).map(lambda more: json.dumps({**GOOD, **more}).encode())
STDIN = st.binary(max_size=60) | ANY.map(lambda value: json.dumps(value).encode()) | CONF | CONF
WORDS = ["", "c1", "c2", "eth0", "a/b", "..", "/proc/9/ns/net", "A=1;B=2", "A", ";;", "x" * 99]
WORD = st.sampled_from(WORDS) | st.text(max_size=5)
ENV = st.fixed_dictionaries(
    {"CNI_COMMAND": st.sampled_from(COMMANDS) | WORD},
    optional=dict.fromkeys(("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_NETNS_OVERRIDE"), WORD),
)
RIGHT = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/proc/9/ns/net"}
ENVS = ENV | ENV.map(lambda env: {**env, **RIGHT})


@settings(max_examples=CASES)
@given(ENVS, STDIN)
@example({"CNI_COMMAND": "ADD", **RIGHT}, b"[" * 9_000)
@example({"CNI_COMMAND": "ADD", **RIGHT}, b'{"cniVersion": 1' + b"0" * 4400 + b"}")
@example({"CNI_COMMAND": "VERSION"}, b"\xff")
def test_every_input_gets_an_answer(env: dict[str, str], stdin: bytes) -> None:
    host = Host()
    reply = skel.run(env, stdin, Sandbox(9, ""), lambda _: host.plugin)
    text = reply.text.decode()
    assert reply.status in (0, 1)
    if reply.status:
        body = json.loads(text)
        assert body["cniVersion"] in VERSIONS and body["msg"] and "Traceback" not in text
        assert body["code"] in (1, 2, 3, 4, 5, 6, 7, 11, 50, 51)
        assert body["code"] != 5 or (reply.error is not None and reply.error.__cause__ is None), f"not foreseen: {text}"
        assert not host.held and not host.kernel.veths and not host.firewall.pods, "a failed call leaves nothing"
    elif text:
        assert json.loads(text)["cniVersion"]
