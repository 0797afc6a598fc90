"""The record of the kernel's features: the decision as a table, the reading of a machine, and the tests' helper."""

from __future__ import annotations

import errno
import gzip
import re
import subprocess
from pathlib import Path

import pytest

from podwire_base.role import features as f
from podwire_base.role.kernelconfig import read, running
from podwire_base.testing.features import need, needed

WITHOUT_NETEM = f.Kernel("6.18.4-cloud", {"VETH": "y", "VXLAN": "m"})
UNKNOWN = f.Kernel("6.18.4-cloud")  # its configuration cannot be read
OLD = f.Kernel("4.19.0-27-amd64")

# (feature, kernel, a part of the excuse; "" where the kernel must have the feature)
TABLE = [
    (f.NETEM, WITHOUT_NETEM, "CONFIG_NET_SCH_NETEM"),
    (f.NETEM, UNKNOWN, ""),
    (f.NETEM, OLD, ""),
    (f.VETH, WITHOUT_NETEM, ""),
    (f.VXLAN, WITHOUT_NETEM, ""),  # a module counts: it can be loaded when needed
    (f.WIREGUARD, OLD, "came with Linux 5.6, this is 4.19.0-27-amd64"),
    (f.WIREGUARD, f.Kernel("5.5.19", {"WIREGUARD": "m"}), "came with Linux 5.6"),
    (f.WIREGUARD, f.Kernel("5.6.0", {"WIREGUARD": "m"}), ""),
    (f.WIREGUARD, f.Kernel("5.10.0", {}), "CONFIG_WIREGUARD"),
    (f.CONNTRACK_FILTER, f.Kernel("5.10.0"), ""),  # 5.10 is not older than 5.8
    (f.CONNTRACK_STATUS_FILTER, f.Kernel("5.10.0"), "came with Linux 5.18"),
    (f.BPF_TCX, f.Kernel("6.6.1", {"BPF_SYSCALL": "y"}), "CONFIG_NET_XGRESS"),
    (f.BPF_TCX, f.Kernel("6.6.1", {}), "CONFIG_BPF_SYSCALL, CONFIG_NET_XGRESS"),
    (f.SHORT_SLICES, f.Kernel("6.12.0", {}), ""),
]


@pytest.mark.parametrize(("feature", "kernel", "excuse"), TABLE, ids=lambda value: str(getattr(value, "name", value)))
def test_an_excuse_is_an_older_kernel_or_an_option_known_to_be_off(
    feature: f.Feature, kernel: f.Kernel, excuse: str
) -> None:
    assert excuse in f.judge(feature, kernel)
    assert bool(f.judge(feature, kernel)) == bool(excuse)


@pytest.mark.parametrize(("feature", "kernel", "excuse"), TABLE, ids=lambda value: str(getattr(value, "name", value)))
def test_a_test_is_skipped_with_an_excuse_and_fails_without(feature: f.Feature, kernel: f.Kernel, excuse: str) -> None:
    need(feature, True, kernel)  # it works: the record is not used
    with pytest.raises(pytest.skip.Exception if excuse else pytest.fail.Exception, match=re.escape(excuse) or None):
        need(feature, False, kernel)


@pytest.mark.parametrize(
    "refusal", [OSError(errno.EOPNOTSUPP, "no"), subprocess.CalledProcessError(2, ["tc"])], ids=["errno", "program"]
)
def test_what_the_kernel_refuses_is_judged(refusal: Exception) -> None:
    with (
        pytest.raises(pytest.skip.Exception, match="CONFIG_NET_SCH_NETEM"),
        needed(f.VETH, f.NETEM, kernel=WITHOUT_NETEM),
    ):
        raise refusal
    with pytest.raises(type(refusal)), needed(f.VETH, f.NETEM, kernel=UNKNOWN):
        raise refusal


def test_missing_privileges_are_no_excuse() -> None:
    with pytest.raises(PermissionError), needed(f.NETEM, kernel=WITHOUT_NETEM):
        raise PermissionError(errno.EPERM, "no")


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (f.Kernel("6.1.0", {}), "built without CONFIG_NF_TABLES"),
        (f.Kernel("6.1.0", {"NF_TABLES": "m"}), "load its kernel module"),
        (f.Kernel("6.1.0", {"NF_TABLES": "y"}, 1 << f.CAP_SYS_ADMIN), "lacks CAP_NET_ADMIN"),
        (f.Kernel("6.1.0"), "the kernel refuses it; nf_tables (Linux 3.13, CONFIG_NF_TABLES) is needed"),
    ],
)
def test_a_person_reads_what_is_missing(kernel: f.Kernel, said: str) -> None:
    assert said in f.explain(f.NF_TABLES, kernel)


def test_cap_sys_admin_holds_cap_bpf() -> None:
    assert "CAP_BPF" not in f.explain(f.BPF, f.Kernel("6.1.0", None, 1 << f.CAP_SYS_ADMIN))
    assert "lacks CAP_BPF" in f.explain(f.BPF, f.Kernel("6.1.0", None, 1 << f.CAP_NET_ADMIN))


def test_the_nftables_backend_names_each_thing_it_lacks() -> None:
    options = dict.fromkeys(("NF_TABLES", "NFT_CT", "NFT_NAT", "NFT_MASQ", "NFT_REJECT", "NFT_NUMGEN"), "y")
    assert f.lacking(f.NFTABLES_BACKEND, f.Kernel("6.1.0", options)) == [
        "nf_tables: fib type: this kernel is built without CONFIG_NFT_FIB"
    ]


def test_every_feature_is_recorded_once() -> None:
    every = [value for value in vars(f).values() if isinstance(value, f.Feature)]
    assert len({feature.name for feature in every}) == len(every) > 30
    assert all(not option.startswith("CONFIG_") for feature in every for option in feature.options)


def _machine(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


CONFIG = b'#\n# Linux\n#\nCONFIG_VETH=m\n# CONFIG_DUMMY is not set\nCONFIG_DEFAULT_HOSTNAME="(none)"\n'


@pytest.mark.parametrize(
    "files",
    [
        {"proc/config.gz": gzip.compress(CONFIG)},
        {"proc/config.gz": b"broken", "boot/config-6.1.0-13-amd64": CONFIG},
        {"boot/config-6.1.0-13-amd64": CONFIG},
        {"lib/modules/6.1.0-13-amd64/config": CONFIG},
    ],
    ids=" ".join,
)
def test_the_configuration_is_read_where_a_distribution_keeps_it(tmp_path: Path, files: dict[str, bytes]) -> None:
    kernel = read("6.1.0-13-amd64", _machine(tmp_path, files))
    assert kernel.options == {"VETH": "m", "DEFAULT_HOSTNAME": '"(none)"'}
    assert kernel.version == (6, 1)
    assert f.judge(f.DUMMY, kernel)


def test_a_kernel_that_does_not_tell_must_have_everything(tmp_path: Path) -> None:
    """The configuration of another kernel says nothing about this one."""
    status = b"Name:\tx\nCapEff:\t0000000000001000\n"
    kernel = read("6.1.0", _machine(tmp_path, {"boot/config-6.1.0-13-amd64": CONFIG, "proc/self/status": status}))
    assert kernel == f.Kernel("6.1.0", None, 1 << f.CAP_NET_ADMIN)
    assert not f.judge(f.DUMMY, kernel)


def test_this_machine_is_read_once() -> None:
    assert running() is running()
    assert running().version > (2, 6)


@pytest.mark.parametrize(("release", "version"), [("6.18.44-fc", (6, 18)), ("5.10", (5, 10)), ("rolling", (0, 0))])
def test_the_version_is_the_start_of_the_release(release: str, version: f.Version) -> None:
    assert f.parse_release(release) == version


@pytest.mark.parametrize(
    ("has", "told"),
    [
        ((f.CAP_BPF, f.CAP_NET_ADMIN), ""),
        ((f.CAP_SYS_ADMIN, f.CAP_NET_ADMIN), ""),
        ((f.CAP_SYS_ADMIN,), "this process lacks CAP_NET_ADMIN"),
        ((f.CAP_NET_ADMIN, f.CAP_PERFMON), "this process lacks CAP_BPF"),
        ((), "this process lacks CAP_BPF and CAP_NET_ADMIN"),
    ],
    ids=str,
)
def test_what_a_process_lacks_is_named(has: tuple[int, ...], told: str) -> None:
    kernel = f.Kernel("6.18.0", None, sum(1 << one for one in has))
    assert f.lacks(kernel, f.CAP_BPF, f.CAP_NET_ADMIN) == told
