"""Which store a command works on, and how it is opened."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from casckpt.checkpoint.places import (
    ENVIRONMENT,
    STORE_FOLDER,
    at_or_inside,
    is_folder,
    is_store,
    nearest,
)
from casckpt.cli.output import Settings
from casckpt.errors import BadRef, NoStore

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.queries import Catalog
    from casckpt.checkpoint.records import Checkpoint


def named(settings: Settings) -> Path | None:
    """Return the store that --store or CASCKPT_STORE names, or None."""
    name = settings.store or os.environ.get(ENVIRONMENT)
    return Path(name).expanduser() if name else None


def locate(settings: Settings) -> Path:
    """Return the store: --store, else CASCKPT_STORE, else the nearest `.casckpt` upward.

    Raises:
        NoStore: if none of the three names one. That it is a store is for the store to say.
    """
    path, here = named(settings), Path.cwd()
    found = nearest(here) if path is None else at_or_inside(path)
    if found is not None and is_store(found):
        return found
    # One that has lost its format.json is meant all the same, for `repair`.
    for folder in (here, *here.parents) if path is None else (path,):
        if is_folder(folder / STORE_FOLDER):
            return folder / STORE_FOLDER
    if path is not None:
        return path
    raise NoStore(
        "no store named, and none found",
        f"no --store, no {ENVIRONMENT}, and no {STORE_FOLDER} in {here} or above it",
        "make one here with `casckpt init`, or name one: --store PATH",
    )


def _why_none(path: Path) -> tuple[str, str]:
    """Return why no store is at a path, and what to do: `init` takes no folder that holds files."""
    inside = shlex.quote(str(path / STORE_FOLDER))
    if path.is_dir():
        try:
            is_empty = not any(path.iterdir())
        except PermissionError:
            return "what is in the folder may not be seen", "name another folder with --store"
        if not is_empty:
            return (
                "the folder holds other files",
                f"make one inside with `casckpt init {inside}`, or name another with --store",
            )
        why = "the folder is empty"
    elif path.exists():
        return "it is no folder", "name a folder with --store"
    else:
        why = "no such folder"
    hint = f"make one with `casckpt init {shlex.quote(str(path))}`, or name another with --store"
    return why, hint


def split(settings: Settings, *refs: str) -> list[str]:
    """Return the REFs without `STORE::`, which becomes the store of this command.

    Raises:
        BadRef: if they name different stores.
    """
    from casckpt.checkpoint.refs import split_store

    parts = [split_store(ref) for ref in refs]
    stores = {store for store, _ in parts if store is not None}
    if len(stores) > 1:
        raise BadRef(
            f"two stores in one command: {' and '.join(sorted(stores))}",
            "a command works on one store",
            "leave STORE:: out and name the store with --store",
        )
    if stores:
        settings.store = stores.pop()
    return [ref for _, ref in parts]


@contextmanager
def opened(settings: Settings, mode: Literal["r", "a"] = "r") -> Iterator[Store]:
    """Open the store for the length of a `with`; never makes one.

    Args:
        settings: the global options.
        mode: "r" to read only, "a" for commands that change something.

    Raises:
        NoStore: if there is none at the place that was named.
    """
    from casckpt.api import Store

    store = Store(_existing(settings), mode=mode)
    try:
        yield store
    finally:
        store.close()


def checkpoint_of(store: Store, ref: str) -> Checkpoint:
    """Return the checkpoint that a REF means in this store, for what changes it.

    Folders that hold a store, and can be named like a run, are not looked into.

    Raises:
        NotFound, Ambiguous, BadRef, Deleted: if it does not mean one checkpoint.
    """
    from casckpt.checkpoint.refs import parse_ref

    return store._catalog.resolve(parse_ref(ref))


@contextmanager
def rows(settings: Settings) -> Iterator[Catalog]:
    """Open only the rows of the store, for `ls`.

    The whole Store brings policies, saving and restoring with it, which are a quarter of the
    start-up time of a list of 10,000 checkpoints.

    Raises:
        NoStore: if there is none at the place that was named.
    """
    from casckpt.checkpoint.queries import Catalog
    from casckpt.store import Repository

    repository = Repository.open(_existing(settings), mode="r")
    try:
        yield Catalog(repository)
    finally:
        repository.close()


def _existing(settings: Settings) -> Path:
    """Return the store, which is there: mode "a" would make one at a mistyped path.

    Raises:
        NoStore: if there is none.
    """
    path = locate(settings)
    try:
        missing = not (path / "format.json").exists()
    except PermissionError:
        missing = False  # to open it says so better
    if missing:
        if (path / "packs").is_dir():
            raise NoStore(
                f"no format.json at {path}",
                "it looks like a store that has lost it",
                f"run `casckpt --store {path} repair --rebuild-index`",
            )
        raise NoStore(f"no store at {path}", *_why_none(path))
    return path
