"""`casckpt cache ls` and `cache rm`: what `cached` and shared stages keep between runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import formatting, stores
from casckpt.cli.options import LazyGroup, command, global_options
from casckpt.cli.output import Column, Output
from casckpt.cli.prompts import agreed
from casckpt.errors import NotFound

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.training.cached import CacheEntry

_KINDS = {"value": "cached", "stage": "shared stage", "files": "hashes of files"}


@click.group(
    "cache",
    cls=LazyGroup,
    table={
        "ls": ("casckpt.cli.cache:ls", "List what is kept, by name."),
        "rm": ("casckpt.cli.cache:rm", "Forget what is kept under a name."),
    },
    sections=(("Commands", ("ls", "rm")),),
    examples=("casckpt cache ls", "casckpt cache rm features"),
)
@global_options
def cache() -> None:
    """Show or drop what runs of a store share: values of `cached`, results of shared stages.

    It is all kept until it is dropped here; what is dropped is computed again when it is needed.
    """


@command("ls", examples=("casckpt cache ls", "casckpt cache ls --json"))
def ls(output: Output) -> None:
    """List what is kept, by name, with its bytes on disk."""
    with stores.opened(output.settings) as store:
        found = [(entry, _stored_bytes(store, entry)) for entry in _entries(store)]
    if output.json:
        output.document("cache ls", entries=[_record(entry, size) for entry, size in found])
    elif output.quiet:
        output.lines(entry.name for entry, _ in found if entry.kind != "files")
    else:
        output.table(
            [
                Column("NAME"),
                Column("KIND"),
                Column("COUNT", right=True),
                Column("STORED", right=True),
            ],
            [
                (entry.name or "-", _KINDS[entry.kind], f"{entry.count:,}", formatting.size(size))
                for entry, size in found
            ],
        )
        if not found:
            output.note("Nothing is cached.")


@command(
    "rm",
    examples=(
        "casckpt cache rm features",
        "casckpt cache rm features augment --yes",
    ),
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would go, change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(output: Output, names: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """Forget what is kept under each NAME; `gc` frees the bytes.

    There is no undo, but what is needed is computed again.
    """
    from casckpt.training import cached

    with stores.opened(output.settings, "r" if dry_run else "a") as store:
        entries = [entry for entry in _entries(store) if entry.kind != "files"]
        known = {entry.name for entry in entries}
        for name in names:
            if known.isdisjoint(cached.shown_as(name)):
                raise NotFound(
                    f"nothing is cached as {name!r}",
                    "the store keeps nothing of that name for its runs",
                    "see `casckpt cache ls`",
                )
        wanted = set().union(*map(cached.shown_as, names))
        chosen = [entry for entry in entries if entry.name in wanted]
        sizes = [_stored_bytes(store, entry) for entry in chosen]
        if not output.json and not output.quiet:
            output.lines(
                f"{entry.name}  {formatting.count(entry.count, 'result')}, {formatting.size(size)}"
                for entry, size in zip(chosen, sizes, strict=True)
            )
        if not dry_run:
            if not agreed(output, "Forget them?", yes=yes, command="cache rm"):
                output.note("Nothing was changed.")
                return
            for name in dict.fromkeys(names):
                cached.drop(store._repository, name)
    if output.json:
        records = [_record(entry, size) for entry, size in zip(chosen, sizes, strict=True)]
        output.document("cache rm", drop=records, dry_run=dry_run)
    elif output.quiet:
        output.lines(dict.fromkeys(entry.name for entry in chosen))
    elif dry_run:
        output.note("Dry run: nothing was changed.")
    else:
        output.note("Forgotten. `casckpt gc` frees the bytes.")


def _entries(store: Store) -> Sequence[CacheEntry]:
    from casckpt.training import cached

    return cached.entries(store._repository)


def _stored_bytes(store: Store, entry: CacheEntry) -> int:
    """Return what the results of a name take in packs; small ones are rows of the index."""
    if not entry.manifests:
        return 0
    roots = [bytes.fromhex(identifier) for identifier in entry.manifests]
    return sum(stored for _, stored in store._repository.closure(roots).values())


def _record(entry: CacheEntry, stored_bytes: int) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "count": entry.count,
        "stored_bytes": stored_bytes,
    }
