"""Restore into an existing tree: compared whole first, then filled.

`IntoPlan.match` walks the saved tree and `into` side by side. It notes every difference, which
array of `into` takes which entry, and returns what puts the result together after the read. Until
`refuse` has passed, nothing of `into` has been touched.

An object that has `state_dict()` and `load_state_dict()` may say by an attribute `casckpt_into`
how it is filled; without it, or with any other word, its handler or its state decides.

    "parts"     its state is a dict of named parts: each is filled like a leaf of the tree, and
                those that only the checkpoint has are added (a State of a run)
    "shown"     its `state_dict()` shows its own memory: the tensors in it are filled in place,
                then `load_state_dict` is given all of it (a torch module without its wrappers)

A handler's `bind` and `bind_built` return the target, or as text why it does not fit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from casckpt.checkpoint import leaves as leaf_module
from casckpt.checkpoint.into_parts import (
    Differences,
    child_kind,
    is_array,
    is_object,
    is_pure,
    items_of,
    keyed,
    replace_parts,
    type_text,
)
from casckpt.checkpoint.leaves import VALUE_KINDS, Handler, RestoreOptions, Target
from casckpt.checkpoint.manifest import Entry, Manifest
from casckpt.checkpoint.scalars import SCALAR_TAGS, Node, encode_key
from casckpt.checkpoint.tree import DEPTH_MAX
from casckpt.checkpoint.tree_build import (
    Builder,
    children,
    entry_index,
    extension_parts,
    selected_entries,
    tag_of,
)
from casckpt.checkpoint.tree_paths import Selection, join
from casckpt.errors import BadRequest, TreeMismatch

_log = logging.getLogger("casckpt")

LeafOf = Callable[[int], Any]
Finish = Callable[[LeafOf], Any]
"""Given the leaves that were read, returns the part of the result that stands here."""

_NAMES: Final = {
    None: "a list",
    "t": "a tuple",
    "d": "a dict",
    "n": "a namedtuple",
    "D": "a dataclass",
}


@dataclass(frozen=True, slots=True)
class Bound:
    """An array of `into` and who handles it."""

    target: Target
    handler: Handler


class IntoPlan:
    """What goes where.

    Attributes:
        targets: entry → the array of `into` that takes it.
        fresh: entries of which new values are needed.
        differences: filled by `match`.
    """

    def __init__(
        self,
        manifest: Manifest,
        options: RestoreOptions,
        selection: Selection | None,
        strict: bool,
    ) -> None:
        self._tree = manifest.tree
        self._entries = manifest.entries
        self._options = options
        self._selection = selection
        self._strict = strict
        self._depth = 0
        self._direct: dict[int, memoryview] | None = None
        self._fills_objects = False
        self.targets: dict[int, Bound] = {}
        self.fresh: set[int] = set()
        self.differences = Differences()

    def match(self, into: Any) -> Finish:
        """Compare the whole tree; see the module."""
        return self._match(self._tree, into, "", self._selection is None)

    def refuse(self) -> None:
        """Raise TreeMismatch if there are differences and they matter, else log them."""
        found = self.differences
        lines = found.lines()
        if not lines:
            return
        # Nothing to fill where there is something: names or types differ, and not parts.
        fills = self.targets or self._fills_objects
        fills = fills or self._selection is not None or not self._entries
        if not self._strict and (fills or not (found.extra or found.wrong)):
            _log.warning("restore takes what both have; %s", "; ".join(lines))
            return
        how = "into does not fit the checkpoint" if self._strict else "into takes nothing of it"
        raise TreeMismatch(
            f"{how}: {len(found.missing)} missing, {len(found.extra)} extra, "
            f"{len(found.wrong)} different",
            "; ".join(lines),
            found.hint() or ("" if self._strict else "leave `into` out to see what is there"),
            missing=found.missing,
            extra=found.extra,
            wrong=found.wrong,
            shape=[text for text in found.wrong if ": shape " in text],
            dtype=[text for text in found.wrong if ": dtype " in text],
        )

    def direct_memory(self, index: int) -> memoryview | None:
        """Return the memory of `into` to read an entry to; None where two share memory."""
        if self._direct is None:
            self._direct = self._without_overlaps()
        return self._direct.get(index)

    def _without_overlaps(self) -> dict[int, memoryview]:
        import numpy as np

        spans = []
        for index, bound in self.targets.items():
            memory = bound.target.direct
            if memory is not None and self._entries[index].alias is None:
                start = np.frombuffer(memory, np.uint8).ctypes.data
                spans.append((start, start + len(memory), index, memory))
        direct: dict[int, memoryview] = {}
        end_of_last = -1
        for start, end, index, memory in sorted(spans, key=lambda span: span[:3]):
            # Reads run in parallel: of two that overlap, one is copied after them.
            if start >= end_of_last:
                direct[index] = memory
                end_of_last = end
        return direct

    def _match(self, node: Node, target: Any, path: str, whole: bool) -> Finish:
        whole = whole or (self._selection is not None and self._selection.matches(path))
        self._depth += 1
        try:
            if self._depth > DEPTH_MAX + 1:
                # The saved tree has been measured: this is an object whose state is an object.
                return self._wrong(path, "objects nested too deeply in into", target)
            tag = tag_of(node)
            if is_object(target):
                return self._object(node, target, path, whole)
            if target is None or tag == "e" or tag == "x":
                if not whole:
                    return self._selected_part(node, target, path)
                if target is None:
                    return self._new(node, path)
                return self._leaf(node, tag, target, path)
            if tag in SCALAR_TAGS or (tag is None and type(node) is not list):
                return self._scalar(node, target, path) if whole else _keep(target)
            return self._container(node, tag, target, path, whole)
        finally:
            self._depth -= 1

    def _selected_part(self, node: Node, target: Any, path: str) -> Finish:
        if self._has_selected(node, path):
            self.differences.extra.append(path)
        return _keep(target)

    def _new(self, node: Node, path: str) -> Finish:
        """Plan a new value, of all that is below a node."""
        self.fresh.update(selected_entries(node, len(self._entries), None))

        def finish(leaf: LeafOf) -> Any:
            return Builder(leaf, len(self._entries), self._options).build(node, path)

        return finish

    def _scalar(self, node: Node, target: Any, path: str) -> Finish:
        if is_array(target) or (child_kind(target) is not None and len(items_of(target)) > 0):
            return self._wrong(
                path, f"a plain value in the checkpoint, {type_text(target)} in into", target
            )
        return self._new(node, path)

    def _leaf(self, node: Node, tag: str | None, target: Any, path: str) -> Finish:
        if tag == "e":
            index = entry_index(node, len(self._entries))
            entry = self._described(index)
            if entry.kind in VALUE_KINDS or "scalar" in entry.flags:
                return self._scalar(node, target, path)
        else:
            _, kind, attributes, _ = extension_parts(node)
            if kind != "sparse":
                return self._scalar(node, target, path)
        handler = leaf_module.handler_of(target)
        if handler is None or not handler.is_leaf(target):
            what = f"{entry.kind} {entry.shape}" if tag == "e" else "a sparse tensor"
            return self._wrong(
                path, f"{what} in the checkpoint, {type_text(target)} in into", target
            )
        bound = (
            handler.bind(target, entry)
            if tag == "e"
            else handler.bind_built(target, kind, attributes)
        )
        if isinstance(bound, str):
            return self._wrong(path, bound, target)
        if tag == "e":
            self.targets[index] = Bound(bound, handler)
            return _keep(target)
        self._refuse_arrays(node, target, path)
        made = self._new(node, path)

        def finish(leaf: LeafOf) -> Any:
            bound.assign(made(leaf))
            return target

        return finish

    def _described(self, index: int) -> Entry:
        """Return the entry that says shape and dtype: an alias of an object has none itself."""
        entry = self._entries[index]
        while entry.alias is not None and entry.stride is None:
            entry = self._entries[entry.alias]
        return entry

    def _container(
        self, node: Node, tag: str | None, target: Any, path: str, whole: bool
    ) -> Finish:
        parts = dict(keyed(tag, target, children(node, tag)))
        kind = child_kind(target)
        if (
            kind is None
            or (kind == "dict") != (tag == "d")
            or (kind == "fields" and tag == "D") != (tag == "D")
        ):
            if not whole and not self._has_selected(node, path):
                return _keep(target)
            return self._wrong(
                path, f"{_NAMES[tag]} in the checkpoint, {type_text(target)} in into", target
            )
        own = dict(keyed(tag, target, items_of(target)))
        replaceable = not own if kind == "dict" else len(own) != len(parts)
        if (
            whole
            and replaceable
            and isinstance(target, dict | list)
            # What is empty has no memory of its own to keep: a list that grows by arrays, say.
            and (not own or (self._is_pure(node) and is_pure(target)))
        ):
            return self._refill(node, target, path)
        finishes: list[tuple[Any, Finish]] = []
        for name, (key, child) in parts.items():
            below = join(path, key)
            if name in own:
                finishes.append((own[name][0], self._match(child, own[name][1], below, whole)))
            elif whole or self._has_selected(child, below):
                self.differences.extra.append(below)
        for name, (key, _) in own.items():
            below = join(path, key)
            if name not in parts and (
                whole or (self._selection is not None and self._selection.matches(below))
            ):
                self.differences.missing.append(below)
        return lambda leaf: replace_parts(target, [(key, finish(leaf)) for key, finish in finishes])

    def _refill(self, node: Node, target: Any, path: str) -> Finish:
        """Plan to replace all items of a list of plain values, or fill an empty list or dict."""
        made = self._new(node, path)

        def finish(leaf: LeafOf) -> Any:
            if isinstance(target, dict):
                target.update(made(leaf))
            else:
                target[:] = made(leaf)
            return target

        return finish

    def _object(self, node: Node, target: Any, path: str, whole: bool) -> Finish:
        kind = getattr(target, "casckpt_into", None)
        if kind == "parts":
            return self._parts(node, target, path, whole)
        if kind == "shown":
            return self._module(node, target, path, whole)
        handler = leaf_module.handler_of(target)
        skeleton = Builder(self._described, len(self._entries), RestoreOptions(as_numpy=True))
        problems: list[str] | None = []
        if handler is not None:
            problems = handler.state_problems(target, _outline(skeleton, node))
        if problems is None:
            return self._module(node, target, path, whole)
        if not whole:
            if not self._has_selected(node, path):
                return _keep(target)
            problems = ["an object takes its state whole, and only= selects a part"]
        if problems:
            for problem in problems:
                self._wrong(path, problem, target)
            return _keep(target)
        self._refuse_arrays(node, target, path)
        made = self._new(node, path)
        self._fills_objects = True

        def finish(leaf: LeafOf) -> Any:
            if handler is not None:
                handler.load_state(target, made(leaf))
            else:
                target.load_state_dict(made(leaf))
            return target

        return finish

    def _refuse_arrays(self, node: Node, target: Any, path: str) -> None:
        """Raise BadRequest if what saved tensors would be given arrays, and fail half-way."""
        if not self._options.as_numpy:
            return
        found = selected_entries(node, len(self._entries), None)
        if any(self._described(index).kind in ("tensor", "storage") for index in found):
            raise BadRequest(
                f"{path or 'the root'}: as_numpy=True gives no tensors to {type_text(target)}",
                "it takes the state that was saved, which has tensors; nothing was touched",
                "leave as_numpy out, or restore this part without `into`",
            )

    def _parts(self, node: Node, target: Any, path: str, whole: bool) -> Finish:
        """Plan for named parts: plain values are set anew, and may be added by the checkpoint."""
        if tag_of(node) != "d":
            return self._wrong(path, "no state of named parts in the checkpoint", target)
        own = target.state_dict()
        names = dict(children(node, "d"))
        finishes: list[tuple[Any, Finish]] = []
        for name, child in names.items():
            below = join(path, name)
            if not whole and not self._has_selected(child, below):
                continue
            if name not in own or self._is_replaced(child, own[name]):
                finishes.append((name, self._replaced(child, own.get(name), below)))
            else:
                finishes.append((name, self._match(child, own[name], below, whole)))
        if whole:
            self.differences.missing += [join(path, name) for name in own if name not in names]

        def finish(leaf: LeafOf) -> Any:
            target.load_state_dict({name: made(leaf) for name, made in finishes})
            return target

        return finish

    def _is_replaced(self, node: Node, target: Any) -> bool:
        """Return whether a part has no memory of its own that has to be kept."""
        if target is None or (child_kind(target) is not None and not items_of(target)):
            return True
        if is_array(target) or is_object(target):
            return False
        return is_pure(target) and self._is_pure(node)

    def _replaced(self, node: Node, target: Any, path: str) -> Finish:
        """Plan a new value, in the list or dict that was there if it is of that kind."""
        made = self._new(node, path)

        def finish(leaf: LeafOf) -> Any:
            value = made(leaf)
            if type(value) is not type(target) or not isinstance(target, dict | list):
                return value
            if isinstance(target, list):
                target[:] = value
            else:
                target.clear()
                target.update(value)
            return target

        return finish

    def _module(self, node: Node, target: Any, path: str, whole: bool) -> Finish:
        """Plan for an object whose state_dict() shows its own memory, as modules do."""
        before = len(self.differences.extra) + len(self.differences.missing)
        if tag_of(node) != "d":
            return self._wrong(
                path, f"a plain value in the checkpoint, {type_text(target)} in into", target
            )
        plain = target.state_dict()
        finish_plain = self._match(node, plain, path, whole)
        names = {json.dumps(key) for key in node["d"]}
        exact = whole and before == len(self.differences.extra) + len(self.differences.missing)
        metadata = self._new(node["m"], join(path, "_metadata")) if "m" in node else None

        def finish(leaf: LeafOf) -> Any:
            result = finish_plain(leaf)
            if not exact:
                for key in [key for key in result if json.dumps(encode_key(key)) not in names]:
                    del result[key]
            if metadata is not None and hasattr(result, "_metadata"):
                result._metadata = metadata(leaf)
            if exact:
                target.load_state_dict(result)
            else:
                target.load_state_dict(result, strict=False)
            return target

        return finish

    def _wrong(self, path: str, what: str, target: Any) -> Finish:
        self.differences.wrong.append(f"{path or 'the root'}: {what}")
        return _keep(target)

    def _has_selected(self, node: Node, path: str) -> bool:
        if self._selection is None or self._selection.matches(path):
            return True
        return any(
            self._has_selected(child, join(path, key))
            for key, child in children(node, tag_of(node))
        )

    def _is_pure(self, node: Node) -> bool:
        """Return whether there is no array below a node."""
        found = selected_entries(node, len(self._entries), None)
        return all(self._described(index).kind in VALUE_KINDS for index in found)


def _keep(target: Any) -> Finish:
    return lambda leaf: target


def _outline(skeleton: Builder, node: Node) -> Any:
    # Arrays stand as their entries; a sparse tensor would need its parts, and is left out.
    return skeleton.build(node) if tag_of(node) == "d" else None
