"""`podwire image`: makes an OCI image of the agent without a container engine."""

from __future__ import annotations

from pathlib import Path

import click

from podwire_base.version import VERSION

from ..deploy import image as builder
from .common import Failed


@click.command()
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("dist/podwire-image.tar"),
    show_default=True,
    help="The OCI archive to write.",
)
@click.option("--name", help="REPOSITORY:TAG [default: podwire.io/podwire:VERSION]")
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Of podwire; default: built from the source tree in the current directory.",
)
@click.option("--suite", help="Debian or Ubuntu release whose Python is taken; default: this machine's.")
def image(output: Path, name: str | None, wheel: Path | None, suite: str | None) -> None:
    """Build the image that deploy/ runs, for `ctr --namespace k8s.io images import`. Needs root and mmdebstrap."""
    if wheel is None and not Path("pyproject.toml").exists():
        raise Failed("--wheel: missing, and the current directory is not a source tree of podwire")
    try:
        builder.build(
            output,
            name or f"podwire.io/podwire:{VERSION}",
            wheel=wheel,
            checkout=Path.cwd(),
            suite=suite,
            say=click.echo,
        )
    except (builder.BuildFailed, OSError, ValueError) as error:
        raise Failed(str(error)) from error
