"""REFs: how people and programs name a checkpoint.

    REF  = [STORE::]RUN[~LINE][@SEL]  |  [STORE::]id:HEX      HEX: 4 digits or more
    LINE = a number, or * for all lines of the run
    SEL  = STEP | STEP+BATCH | latest | best[:METRIC[:min|max]] | TAG      default: latest

Parsing is pure text; `select` then picks among the checkpoints of a run. What of the run a REF
without LINE sees is decided in `lines.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import BadRef, NotFound
from casckpt.ids import check_run_name, check_step, check_tag

Mode = Literal["min", "max"]

ALL_LINES: Final = -1
"""`Ref.line` of `RUN~*`."""

ID_DIGITS_MIN: Final = 4
"""Fewest hex digits of an id that name a checkpoint."""

_GLOB: Final = frozenset("*?[")

# Compiled at first use, and kept by `re`: a list of everything parses no REF.
_ID: Final = r"id:([0-9A-Fa-f]*)\Z"
_LINE: Final = r"(?P<run>[^~@]*)~(?P<line>[^@]*)\Z"
_STEP: Final = r"(\d{1,19})(?:\+(\d{1,19}))?\Z"
# What may stand after `::`, so that a store path with `::` or `@` in it is still a path.
_WITHOUT_STORE: Final = r"(?:id:[0-9A-Fa-f]*|[^:@~]+(?:~[^:@]*)?(?:@(?:best(?::.*)?|[^:@]*))?)\Z"


@dataclass(frozen=True)
class Selector:
    """Which checkpoint of a run.

    Attributes:
        kind: what selects.
        step: the step, if kind is "step".
        batch: the batch inside it, 0 at its boundary.
        metric: the metric, if kind is "best" and one was named.
        mode: which end of the metric is best, if it was named.
        tag: the tag, if kind is "tag".
    """

    kind: Literal["latest", "step", "best", "tag"] = "latest"
    step: int = 0
    batch: int = 0
    metric: str | None = None
    mode: Mode | None = None
    tag: str = ""


@dataclass(frozen=True)
class Ref:
    """A parsed REF.

    Attributes:
        text: the REF as it was written.
        store: path of the store before `::`, or None for the one at hand.
        run: name of the run; empty if the REF is an id.
        line: number of the line, ALL_LINES, or None for the line opened last.
        selector: which checkpoint; None if none was written, which means latest.
        id_prefix: hex digits of an id, or empty.
    """

    text: str
    store: str | None = None
    run: str = ""
    line: int | None = None
    selector: Selector | None = None
    id_prefix: str = ""


def parse_ref(text: str) -> Ref:
    """Return the parts of a REF.

    Raises:
        BadRef: if it does not follow the grammar.
    """
    store, rest = split_store(text)
    found = re.match(_ID, rest)
    if found:
        return Ref(text, store, id_prefix=_check_id(found[1], text))
    if rest.startswith("id:"):
        raise BadRef(f"bad REF {text!r}", "an id is hex digits", "`casckpt ls` shows ids")
    name, at, selector_text = rest.partition("@")
    selector = parse_selector(selector_text, text) if at else None
    run, line = _parse_line(name, text)
    return Ref(text, store, check_run_name(run), line, selector)


def split_store(text: str) -> tuple[str | None, str]:
    """Return the store path before `::`, or None, and what follows it.

    Raises:
        BadRef: if `text` is no string, or either side of `::` is empty.
    """
    if not isinstance(text, str) or not text:
        raise BadRef(f"bad REF {text!r}", "a REF is a non-empty string")
    if re.match(_WITHOUT_STORE, text):
        return None, text
    start = 0
    while (at := text.find("::", start)) >= 0:
        store, rest = text[:at], text[at + 2 :]
        if re.match(_WITHOUT_STORE, rest):
            if not store:
                raise BadRef(f"bad REF {text!r}", "there is no store before '::'")
            return store, rest
        start = at + 1
    if text.endswith("::"):
        raise BadRef(f"bad REF {text!r}", "there is no run after '::'")
    return None, text


def parse_selector(text: str, ref: str) -> Selector:
    """Return what follows `@` in a REF.

    Args:
        text: the part after `@`.
        ref: the whole REF, for the message.

    Raises:
        BadRef: if it is no step, `latest`, `best...` or tag.
    """
    if text == "latest":
        return Selector()
    if found := re.match(_STEP, text):
        step = check_step(int(found[1]))
        return Selector("step", step=step, batch=check_step(int(found[2] or 0), "batch"))
    head, colon, rest = text.partition(":")
    if head == "best":
        if colon and not rest:
            raise BadRef(f"bad REF {ref!r}", "there is no metric after 'best:'")
        metric, mode = split_mode(rest)
        return Selector("best", metric=metric or None, mode=mode)
    if not text:
        raise BadRef(f"bad REF {ref!r}", "there is nothing after '@'")
    try:
        return Selector("tag", tag=check_tag(text))
    except BadRef as exc:
        raise BadRef(
            f"bad REF {ref!r}",
            f"{text!r} is no step, 'latest', 'best:METRIC:min' or tag",
        ) from exc


def split_mode(text: str) -> tuple[str, Mode | None]:
    """Return METRIC and mode of `METRIC[:min|max]`; a metric may have colons of its own."""
    metric, colon, mode = text.rpartition(":")
    if colon and metric and mode == "min":
        return metric, "min"
    if colon and metric and mode == "max":
        return metric, "max"
    return text, None


def select(ref: Ref, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return the checkpoint that a REF means.

    Args:
        ref: a REF with a run.
        checkpoints: those that the REF can see, oldest first.

    Raises:
        NotFound: if there is none.
        BadRef: if `best` lacks its metric or mode.
    """
    selector = ref.selector or Selector()
    if not checkpoints:
        raise NotFound(
            f"{ref.text}: there is no checkpoint",
            "nothing has been saved on the line that it names, or all of it was removed",
            f"`casckpt ls '{ref.run}~*'` shows all lines",
            run=ref.run,
        )
    if selector.kind == "best":
        return _select_best(ref, selector, checkpoints)
    if selector.kind == "latest":
        return checkpoints[-1]
    for checkpoint in reversed(checkpoints):
        if selector.kind == "tag":
            if selector.tag in checkpoint.tags:
                return checkpoint
        elif (checkpoint.step, checkpoint.batch) == (selector.step, selector.batch):
            return checkpoint
    raise _nothing_selected(ref, selector, checkpoints)


def rank(
    checkpoints: Iterable[Checkpoint], metric: str, mode: Mode
) -> list[tuple[float, Checkpoint]]:
    """Return those with a finite value of the metric, best first; of equals the older first.

    NaN and infinities are never best (a diverged run must not win).
    """
    sign = 1.0 if check_mode(mode) == "min" else -1.0
    scored = [
        (value, checkpoint)
        for checkpoint in checkpoints
        if (value := checkpoint.metrics.get(metric)) is not None and math.isfinite(value)
    ]
    scored.sort(key=lambda pair: sign * pair[0])
    return scored


def is_glob(pattern: str) -> bool:
    """Return whether a text is a glob over names of runs, not a name."""
    return not _GLOB.isdisjoint(pattern)


def names_glob(target: str) -> bool:
    """Return whether what stands for the run in `RUN[~LINE][@SEL]` is a glob."""
    return is_glob(target.partition("@")[0].partition("~")[0])


def selects_run(ref: Ref) -> bool:
    """Return whether a REF names a run or a line, and no checkpoint of it."""
    return not ref.id_prefix and ref.selector is None


def check_pattern(pattern: str) -> None:
    """Raise BadRef unless a text is a run or a glob over runs: not a line, nor a checkpoint."""
    name = pattern.removesuffix("~*")
    if is_glob(name):
        return
    ref = parse_ref(name)
    if ref.store is not None or ref.line is not None or not selects_run(ref):
        raise BadRef(
            f"{pattern} is no run and no glob over runs",
            "all lines of a run count, and each by itself",
            "name the run alone, such as bpm/nn, or several: 'bpm/*'",
        )


def require_metric(found: Sequence[Checkpoint], metric: str) -> None:
    """Raise NotFound, with the names there are, if no checkpoint of some has the metric."""
    if found and not any(metric in checkpoint.metrics for checkpoint in found):
        names = sorted({name for checkpoint in found for name in checkpoint.metrics})
        raise NotFound(
            f"no checkpoint has a metric {metric!r}",
            f"metrics here: {', '.join(names)}" if names else "no metrics were saved here",
            "name one of these, or add it with store.attach_metrics",
        )


def check_mode(mode: str | None, metric: str = "METRIC") -> Mode:
    """Return the mode, else raise BadRef: which end is best is never guessed."""
    if mode == "min":
        return "min"
    if mode == "max":
        return "max"
    raise BadRef(
        f"best {metric}: the smallest or the largest?" if mode is None else f"bad mode {mode!r}",
        "whether the smallest or the largest value is best is never guessed",
        f"write {metric}:min or {metric}:max, in Python mode='min' or mode='max'",
    )


def _select_best(ref: Ref, selector: Selector, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    if selector.metric is None:
        known = sorted({name for ck in checkpoints for name in ck.metrics})
        raise BadRef(
            f"{ref.text}: best by which metric?",
            f"the run has {', '.join(known[:8])}" if known else "the run has no metrics",
            f"write {_name(ref)}@best:{known[0] if known else 'METRIC'}:min (or :max)",
        )
    if selector.mode is None:
        metrics = {name for ck in checkpoints for name in ck.metrics}
        name, colon, tail = selector.metric.rpartition(":")
        if colon and name in metrics and selector.metric not in metrics:
            raise BadRef(
                f"{ref.text}: {tail!r} is neither min nor max",
                "which end is best is never guessed",
                f"write {_name(ref)}@best:{name}:min (or :max)",
            )
        raise BadRef(
            f"{ref.text}: is the smallest or the largest {selector.metric} best?",
            "it is never guessed",
            f"write {_name(ref)}@best:{selector.metric}:min (or :max)",
        )
    ranked = rank(checkpoints, selector.metric, selector.mode)
    if not ranked:
        raise _nothing_selected(ref, selector, checkpoints)
    return ranked[0][1]


def _nothing_selected(ref: Ref, selector: Selector, checkpoints: Sequence[Checkpoint]) -> NotFound:
    if selector.kind == "best":
        known = sorted({name for ck in checkpoints for name in ck.metrics})
        why = f"no checkpoint has a finite {selector.metric}"
        hint = f"its metrics are {', '.join(known[:8])}" if known else ""
    elif selector.kind == "tag":
        known = sorted({tag for ck in checkpoints for tag in ck.tags})
        why = f"no checkpoint of {_name(ref)} has the tag {selector.tag!r}"
        hint = f"its tags are {', '.join(known[:8])}" if known else ""
    else:
        nearest = min(checkpoints, key=lambda ck: abs(ck.step - selector.step))
        count = f"{len(checkpoints)} checkpoint{'' if len(checkpoints) == 1 else 's'}"
        why = f"the run has {count}, the nearest is {nearest.ref}"
        hint = f"`casckpt ls {ref.run}` shows them all, with --trash those that were removed"
    return NotFound(f"{ref.text}: not found", why, hint, ref=ref.text, run=ref.run)


def _name(ref: Ref) -> str:
    line = "" if ref.line is None else f"~{'*' if ref.line == ALL_LINES else ref.line}"
    return f"{ref.run}{line}"


def _parse_line(name: str, text: str) -> tuple[str, int | None]:
    if "~" not in name:
        return name, None
    found = re.match(_LINE, name)
    line = found["line"] if found else ""
    if found and line == "*":
        return found["run"], ALL_LINES
    if found and re.fullmatch(r"\d{1,18}", line):
        return found["run"], int(line)
    raise BadRef(f"bad REF {text!r}", "after '~' comes the number of a line, or '*' for all")


def _check_id(digits: str, text: str) -> str:
    if not ID_DIGITS_MIN <= len(digits) <= 64:
        raise BadRef(
            f"bad REF {text!r}",
            f"an id is {ID_DIGITS_MIN} to 64 hex digits, this has {len(digits)}",
            "`casckpt ls` shows ids",
        )
    return digits.lower()
