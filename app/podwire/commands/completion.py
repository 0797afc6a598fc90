"""`podwire completion`: the script that makes a shell complete commands, options, pods, nodes and Services."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_HOW = {
    "bash": "source <(podwire completion bash)        # in ~/.bashrc",
    "zsh": "source <(podwire completion zsh)         # in ~/.zshrc, behind compinit",
    "fish": "podwire completion fish | source         # in ~/.config/fish/config.fish",
}


@click.command(epilog="\b\n" + "\n".join(_HOW.values()))
@click.argument("shell", type=click.Choice(list(_HOW)))
def completion(shell: str) -> None:
    """Print the script that completes podwire's words in a shell.

    It completes commands, options, clusters, and the names of pods, nodes, Services and other objects.
    """
    from ..main import cli

    made = get_completion_class(shell)
    assert made is not None  # click has these three
    click.echo(made(cli, {}, "podwire", "_PODWIRE_COMPLETE").source())
