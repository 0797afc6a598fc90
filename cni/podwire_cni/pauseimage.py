"""Makes the pause program an OCI image archive, for runtimes that start the first process of a sandbox from an image.

    podwire pause-image > pause.tar && ctr --namespace k8s.io images import pause.tar

The image has one layer with one static file. Pure: bytes in, bytes out.
"""

from __future__ import annotations

NAME = "podwire.io/pause:latest"


def build(program: bytes, machine: str, name: str = NAME) -> bytes:
    """Returns the archive. program: a static executable for `machine` (as in uname: x86_64, aarch64 ...). name:
    REPOSITORY:TAG.

    Raises ValueError if `program` is not such an executable, or if OCI has no name for the machine.
    """
    if program[:4] != b"\x7fELF":
        raise ValueError("the pause program is not a compiled one: install a C compiler and podwire again")
    from . import oci  # the agent shares this command line and does not need this module

    layer = oci.tar([oci.Entry("pause", program, 0o755)])
    return oci.archive([layer], {"Entrypoint": ["/pause"], "User": "65535:65535"}, machine, name)
