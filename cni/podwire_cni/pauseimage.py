"""The pause program as an OCI image archive, for runtimes that want their sandbox's first process from an image.

    podwire pause-image > pause.tar && ctr --namespace k8s.io images import pause.tar

One layer with one static file. Pure: bytes in, bytes out.
"""

from __future__ import annotations

NAME = "podwire.io/pause:latest"


def build(program: bytes, machine: str, name: str = NAME) -> bytes:
    """The archive. program: a static executable for `machine` (as in uname: x86_64, aarch64 ...); name:
    REPOSITORY:TAG.

    Raises ValueError if `program` is no such executable or the machine has no name in OCI.
    """
    if program[:4] != b"\x7fELF":
        raise ValueError("the pause program is not a compiled one: install a C compiler and podwire again")
    from . import oci  # the agent, which shares this command line, needs no archives

    layer = oci.tar([oci.Entry("pause", program, 0o755)])
    return oci.archive([layer], {"Entrypoint": ["/pause"], "User": "65535:65535"}, machine, name)
