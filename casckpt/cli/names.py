"""`casckpt tag`, `untag`, `pin`, `unpin`: what a person says about a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from casckpt.cli import completers, stores
from casckpt.cli.checkpoints import record
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.errors import NotFound

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.records import Checkpoint


def _change(
    output: Output,
    refs: Sequence[str],
    change: Callable[[Store, Checkpoint], Checkpoint],
    done: Callable[[Checkpoint], str],
) -> None:
    """Change each checkpoint, then show them as they are now.

    Every REF is resolved before the first change, so that a mistyped one changes nothing.
    """
    name = str(click.get_current_context().info_name)
    plain_refs = stores.split(output.settings, *refs)
    with stores.opened(output.settings, "a") as store:
        targets = [stores.checkpoint_of(store, ref) for ref in plain_refs]
        changed = [change(store, target) for target in targets]
    if output.json:
        output.document(name, checkpoints=[record(checkpoint) for checkpoint in changed])
    elif output.quiet:
        output.ids(checkpoint.id for checkpoint in changed)
    else:
        output.lines(done(checkpoint) for checkpoint in changed)


def _tags(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.ref}  tags: {', '.join(checkpoint.tags) or 'none'}"


@command("tag", examples=("casckpt tag bpm/nn@60 paper-v1",))
@click.argument("ref", shell_complete=completers.refs)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def tag(output: Output, ref: str, names: tuple[str, ...]) -> None:
    """Give a checkpoint names: it can be reached as RUN@NAME, and no policy drops it."""
    _change(output, [ref], lambda store, target: store.tag(target, *names), _tags)


@command("untag", examples=("casckpt untag bpm/nn@60 paper-v1",))
@click.argument("ref", shell_complete=completers.refs)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completers.tags)
def untag(output: Output, ref: str, names: tuple[str, ...]) -> None:
    """Take names away from a checkpoint."""

    def change(store: Store, target: Checkpoint) -> Checkpoint:
        for name in names:
            if name not in target.tags:
                has = ", ".join(target.tags)
                raise NotFound(
                    f"{target.ref} has no tag {name}",
                    f"its tags are {has}" if has else "it has none",
                    f"`casckpt untag {target.run}@{name} {name}` finds the one that has it",
                )
        return store.untag(target, *names)

    _change(output, [ref], change, _tags)


@command("pin", examples=("casckpt pin bpm/nn@best:val_loss:min",))
@click.argument("refs", nargs=-1, required=True, metavar="REF...", shell_complete=completers.refs)
def pin(output: Output, refs: tuple[str, ...]) -> None:
    """Keep checkpoints whatever a policy says."""
    _change(
        output,
        refs,
        lambda store, target: store.pin(target),
        lambda checkpoint: f"{checkpoint.ref}  pinned",
    )


@command("unpin", examples=("casckpt unpin bpm/nn@60",))
@click.argument("refs", nargs=-1, required=True, metavar="REF...", shell_complete=completers.refs)
def unpin(output: Output, refs: tuple[str, ...]) -> None:
    """Let policies decide about checkpoints again."""
    _change(
        output,
        refs,
        lambda store, target: store.pin(target, on=False),
        lambda checkpoint: f"{checkpoint.ref}  not pinned",
    )
