"""Tests and the kernel's features: a test whose feature is missing is skipped where the kernel is excused from it
(role/features.py: an older release, or built without the option), and fails in every other case.

    features.need(features.SCTP_SOCKETS, sctp_sockets_work())   the test looked for itself
    with features.needed(features.NETEM):                       what the kernel refuses inside is judged
        ns.run(["tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "10ms"])
"""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator

import pytest

from podwire_base.role.features import Feature, Kernel, explain, judge
from podwire_base.role.kernelconfig import running

# The errors of a kernel that lacks the requested feature. EPERM is not one of them, because privileges are not a
# feature of a kernel.
_UNKNOWN = frozenset(
    (
        errno.EAFNOSUPPORT,
        errno.EINVAL,
        errno.ENODEV,
        errno.ENOENT,
        errno.ENOPROTOOPT,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EPROTONOSUPPORT,
    )
)


def need(feature: Feature, works: bool, kernel: Kernel | None = None) -> None:
    """Continue if the feature works. Otherwise skip the test if the kernel is excused from the feature, or else fail
    the test. works: the result of the test's own check.
    """
    if works:
        return
    kernel = kernel or running()
    reason = judge(feature, kernel)
    if reason:
        pytest.skip(reason)
    pytest.fail(f"{explain(feature, kernel)}. This kernel should have it", pytrace=False)


@contextlib.contextmanager
def needed(*features: Feature, kernel: Kernel | None = None) -> Iterator[None]:
    """A context manager for code that uses the features. If the kernel refuses a call in the block and is excused from
    one of the features, the test is skipped. Otherwise the error is raised unchanged.
    """
    try:
        yield
    except (OSError, subprocess.CalledProcessError) as err:
        if isinstance(err, OSError) and err.errno not in _UNKNOWN:
            raise
        for feature in features:
            reason = judge(feature, kernel or running())
            if reason:
                pytest.skip(reason)
        raise
