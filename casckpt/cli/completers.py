"""What the shell offers after TAB: runs, REFs, tags and metrics of the store in use.

A completer never raises and never makes a store: without one it offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from casckpt.cli import stores
from casckpt.cli.options import settings_of

if TYPE_CHECKING:
    from casckpt.api import Store

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def _completer(offers: Callable[[Store, str], Iterable[str]]) -> Completer:
    """Make a completer of a function from the store and the beginning of a word to words."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            with stores.opened(settings_of(context)) as store:
                words = set(offers(store, incomplete))
        # A shell waits for the answer, and has no place for an error.
        except Exception:
            return []
        return sorted(word for word in words if word.startswith(incomplete))

    return complete


def _runs(store: Store, incomplete: str) -> Iterable[str]:
    return (run.name for run in store.runs())


def _metrics(store: Store, incomplete: str) -> Iterable[str]:
    return (name for checkpoint in store.checkpoints() for name in checkpoint.metrics)


def _tags(store: Store, incomplete: str) -> Iterable[str]:
    return (tag for checkpoint in store.checkpoints() for tag in checkpoint.tags)


def _refs(store: Store, incomplete: str) -> Iterable[str]:
    """Offer runs, and after `RUN@` its steps, tags and `best:METRIC:`."""
    name, at, _ = incomplete.partition("@")
    if not at:
        yield from (run.name for run in store.runs())
        return
    yield f"{name}@latest"
    for checkpoint in store.checkpoints(name):
        yield checkpoint.ref
        yield from (f"{name}@{tag}" for tag in checkpoint.tags)
        for metric in checkpoint.metrics:
            yield from (f"{name}@best:{metric}:{mode}" for mode in ("min", "max"))


runs = _completer(_runs)
metrics = _completer(_metrics)
tags = _completer(_tags)
refs = _completer(_refs)
