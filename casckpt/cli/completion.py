"""`casckpt completion`: the script a shell reads once to complete commands, runs and metrics."""

from __future__ import annotations

import click

from casckpt.cli.options import command
from casckpt.cli.output import Output


@command(
    "completion",
    examples=(
        'eval "$(casckpt completion bash)"       in ~/.bashrc (bash 4.4 or newer)',
        'eval "$(casckpt completion zsh)"        in ~/.zshrc, after compinit',
        "casckpt completion fish > ~/.config/fish/completions/casckpt.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(output: Output, shell: str) -> None:
    """Print a shell completion script.

    It completes commands, options, runs, REFs, tags and metrics; the last four are read from the
    store in use each time.
    """
    from click.shell_completion import get_completion_class

    from casckpt.cli.root import casckpt

    kind = get_completion_class(shell)
    assert kind is not None  # click brings these three
    script = kind(casckpt, {}, "casckpt", "_CASCKPT_COMPLETE")
    # Not script.source(): for bash it starts a bash to ask its version.
    text = script.source_template % script.source_vars()
    if output.json:
        output.document("completion", shell=shell, script=text)
    else:
        output.line(text)
