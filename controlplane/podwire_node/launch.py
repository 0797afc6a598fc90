"""What a container is started with, as plain data: the same for each runtime. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory of the node at a path in the container."""

    source: str
    path: str
    read_only: bool = False

    def words(self) -> list[str]:
        """Return the bind as the netns runtime's shim has it."""
        return [self.source, self.path, "ro" if self.read_only else "rw"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a container. env: only what the pod asks for, without the runtime's own variables. files: path in
    the container -> content. tmpfs: paths of new empty file systems. attempt: number of earlier starts.
    """

    env: Mapping[str, str]
    files: Mapping[str, str]
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[str, ...] = ()
    attempt: int = 0
    image: Mapping[str, object] = field(default_factory=dict)  # what the runtime says of the image
