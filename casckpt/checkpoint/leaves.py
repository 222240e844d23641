"""What a leaf of a state tree is, and who knows how to handle its type.

A leaf is a value whose bytes are stored outside the tree: an array, a tensor, a long string. Each
library whose values can be leaves has one handler, found by the root module of the value's type
(`torch.nn.parameter.Parameter` → `torch`). Handlers other than numpy's live on a higher floor, so
the composition root names their modules with `register_lazy`, and they are imported at first sight.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from casckpt.checkpoint import tree_classes
from casckpt.checkpoint.scalars import Node
from casckpt.errors import BadLeaf, MissingExtra

if TYPE_CHECKING:
    from casckpt.checkpoint.manifest import Entry

ALIGNMENT: Final = 16
"""Bytes: what every dtype of numpy and torch is content with."""

VALUE_KINDS: Final = frozenset({"str", "bytes", "bytearray", "pickle"})
"""Kinds of entries that come back as one Python value, not as an array."""


@dataclass(frozen=True, slots=True)
class Pickled:
    """Marks a value to be stored with pickle, which restore refuses unless it is allowed.

    Args:
        value: anything pickle can take.
    """

    value: Any


class Source(Protocol):
    """The bytes of a leaf, wherever they are.

    A source that lies in the CPU's memory without gaps may have an `address`, an int, by which a
    background save copies it; None is the same as none. One on a device may have a `start_copy`,
    which is given what `copy_to` is, queues the copy, and returns what waits for its end; None if
    nothing was queued.
    """

    def view(self) -> memoryview:
        """Return all bytes, C-contiguous and read-only use; a copy only if it must be."""

    def copy_to(self, dest: memoryview) -> None:
        """Write all bytes to `dest` (exactly as long) in one pass."""

    @property
    def memory_maker(self) -> Callable[[int], memoryview] | None:
        """What allocates the memory to copy to fastest; None if any memory will do."""


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A source that is plain memory."""

    data: bytes | bytearray | memoryview

    def view(self) -> memoryview:
        """Return the memory."""
        return memoryview(self.data).cast("B")

    def copy_to(self, dest: memoryview) -> None:
        """Copy the memory."""
        dest[:] = self.view()

    @property
    def memory_maker(self) -> None:
        """Return None: any memory will do."""


@dataclass(slots=True)
class Leaf:
    """One leaf of a flattened tree, or an alias of one.

    Attributes:
        path: dotted path, for people and globs.
        kind: "array", "tensor", "storage" (memory that only aliases show), or a value kind.
        dtype: name that the kind's handler reads back; empty for value kinds.
        shape: lengths of the axes.
        order: how the bytes run over the axes, see `memory_order`.
        flags: sorted words, such as "parameter".
        item_size: width in bytes of the numbers inside, for the codec.
        length: bytes.
        source: where the bytes are; None for an alias.
        alias: index of the leaf that holds the bytes; -1 if this one does.
        stride: of an alias that views the other's memory: strides in items. None: the same object.
        offset: of such a view: where it starts in the other's bytes.
        opaque: whether the bytes are cut by content instead of on a grid.
        value: the object itself; kept alive so that its identity means something.
    """

    path: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    order: str = "C"
    flags: tuple[str, ...] = ()
    item_size: int = 1
    length: int = 0
    source: Source | None = None
    alias: int = -1
    stride: tuple[int, ...] | None = None
    offset: int = 0
    opaque: bool = False
    value: Any = field(default=None, repr=False)

    def moved_to(self, source: Source | None) -> Leaf:
        """Return the leaf with its bytes elsewhere, and without the object they came from."""
        # Not dataclasses.replace, which takes three times as long: training waits for this.
        return Leaf(
            self.path,
            self.kind,
            self.dtype,
            self.shape,
            self.order,
            self.flags,
            self.item_size,
            self.length,
            source,
            self.alias,
            self.stride,
            self.offset,
            self.opaque,
        )


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What a restore was asked for, as far as leaves need to know.

    Attributes:
        device: where tensors go; None is the CPU.
        as_numpy: give numpy arrays for tensors.
        allow_pickle: unpickle what was stored with `Pickled`.
    """

    device: Any = None
    as_numpy: bool = False
    allow_pickle: bool = False


class Slot(Protocol):
    """A place in memory that becomes one leaf once its bytes are read."""

    dest: memoryview
    """Writable, exactly as long as the entry."""

    temporary: bool
    """Whether `dest` is given back by `finish` (the value lies elsewhere, as on a GPU)."""

    def finish(self) -> None:
        """Take note that `dest` is filled."""

    def value(self) -> Any:
        """Return the leaf; the same object each time."""

    def view(self, entry: Entry) -> Any:
        """Return a new leaf that views this one's memory, as an alias entry says."""


class Target(Protocol):
    """A leaf of the tree given as `into`, checked against an entry."""

    @property
    def direct(self) -> memoryview | None:
        """Its own memory, if the entry's bytes can be read straight into it."""

    def overwrite(self) -> None:
        """Tell its library that `direct` is about to be written to."""

    def assign(self, value: Any) -> None:
        """Copy a leaf made by the same handler into it."""


class Walker(Protocol):
    """What a handler may ask of the flattening in progress."""

    def add(self, leaf: Leaf) -> Node:
        """Register a leaf, or an alias if its value was seen before, and return its node."""

    def walk(self, value: object, path: str) -> Node:
        """Flatten a value below the current one."""


class Handler(Protocol):
    """The few things casckpt needs to know of a library's arrays."""

    def flatten(self, value: Any, path: str, walker: Walker) -> Node | None:
        """Return the node of a value, or None if it is no leaf of this library.

        Raises:
            BadLeaf: if it is one, of a kind that cannot be stored.
        """

    def link(self, leaves: list[Leaf]) -> None:
        """Turn leaves that share memory into aliases; may append leaves of kind "storage"."""

    def allocate(self, entry: Entry, options: RestoreOptions, memory: memoryview | None) -> Slot:
        """Return the slot of an entry, over `memory` if given.

        Raises:
            Corrupt: if the entry contradicts itself.
        """

    def build(
        self, kind: str, attributes: Node, children: list[Any], options: RestoreOptions
    ) -> Any:
        """Return the value of an extension node (`{"x": [root, kind], ...}`)."""

    def bind(self, target: Any, entry: Entry) -> Target | str:
        """Return `target` checked against the entry, or what does not fit: "shape (2,) ..."."""

    def is_leaf(self, value: Any) -> bool:
        """Return whether `into` may have this value where the checkpoint has an array."""

    def bind_built(self, target: Any, kind: str, attributes: Node) -> Target | str:
        """Do the same as `bind` for an extension node."""

    def state_problems(self, target: Any, plain: Any) -> list[str] | None:
        """Say why `load_state(target, plain)` would fail; None: match its state_dict()."""

    def load_state(self, target: Any, plain: Any) -> None:
        """Have an object take the state that was saved of it, to the last bit."""


_lazy: dict[str, str] = {
    "numpy": "casckpt.checkpoint.arrays",
    "ml_dtypes": "casckpt.checkpoint.arrays",
}
_handlers: dict[str, Handler] = {}
_root_of_type: dict[type, str | None] = {}
_EXTRA_OF_ROOT: Final = {"torch": "torch", "numpy": "numpy"}


def register_lazy(root_module: str, adapter_module: str) -> None:
    """Name the module whose `HANDLER` handles values of types that live in `root_module`.

    Nothing is imported until such a value is met, on save or on restore.
    """
    _lazy[root_module] = adapter_module
    _handlers.pop(root_module, None)
    _root_of_type.clear()


def root_of(value: object) -> str | None:
    """Return the root module by which `value` has a handler, looking at base classes too."""
    cls = type(value)
    try:
        return _root_of_type[cls]
    except KeyError:
        pass
    found = None
    for base in cls.__mro__:
        root = getattr(base, "__module__", "").partition(".")[0]
        if root in _lazy:
            found = root
            break
    _root_of_type[cls] = found
    return found


def handler(root: str) -> Handler:
    """Return the handler of a root module.

    Raises:
        MissingExtra: if its library is not installed.
    """
    known = _handlers.get(root)
    if known is not None:
        return known
    try:
        module = importlib.import_module(_lazy[root])
    except KeyError:
        raise MissingExtra(
            f"this checkpoint holds values of {root}, which this casckpt does not know",
            "it was saved with an adapter that is not part of this installation",
            "upgrade casckpt",
        ) from None
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != root:
            raise
        way_out = f"pip install 'casckpt[{_EXTRA_OF_ROOT.get(root, root)}]'"
        raise MissingExtra(
            f"this needs {root}, which is not installed",
            f"the checkpoint holds leaves of {root}",
            f"{way_out}, or pass as_numpy=True" if root == "torch" else way_out,
        ) from exc
    found: Handler = module.HANDLER
    _handlers[root] = found
    return found


def handler_of(value: object) -> Handler | None:
    """Return the handler for a value's type, or None."""
    root = root_of(value)
    return None if root is None else handler(root)


def refused(value: object, path: str, why: str = "", hint: str = "") -> BadLeaf:
    """Return the error for a value that cannot be stored."""
    cls = value if isinstance(value, type) else type(value)
    name = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return BadLeaf(
        f"{path or 'the root'}: {article} {name} cannot be stored",
        why or _why(value),
        hint or _instead(value),
        path=path,
        type_name=name,
    )


def _why(value: object) -> str:
    if unkept := tree_classes.unkept(value):
        return f"it has attributes that are not its fields: {', '.join(unkept)}"
    return "a state holds arrays, tensors, numbers, strings, bytes, None, paths and containers"


def _instead(value: object) -> str:
    """Return what to do with values that scripts often have in a state; empty for any other."""
    kinds = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(value).__mro__}
    for kind, plain in _PLAIN:
        if kind in kinds:
            return f"save {plain} in its place, or wrap it in casckpt.Pickled(...)"
    return ""


_PLAIN: Final = (
    ("builtins.set", "sorted(it)"),
    ("builtins.frozenset", "sorted(it)"),
    ("builtins.range", "list(it)"),
    ("enum.Enum", "its value"),
    ("argparse.Namespace", "vars(it)"),
    ("types.SimpleNamespace", "vars(it)"),
    ("collections.abc.Sequence", "list(it)"),  # such as results of a stage
)


@dataclass(slots=True)
class ValueSlot:
    """The slot of a string, bytes or a pickle."""

    kind: str
    path: str
    buffer: bytearray
    dest: memoryview
    temporary: bool = True
    _result: Any = None

    @classmethod
    def of(cls, entry: Entry) -> ValueSlot:
        """Return a slot with memory of its own."""
        buffer = bytearray(entry.length)
        return cls(entry.kind, entry.path, buffer, memoryview(buffer))

    def finish(self) -> None:
        """Turn the bytes into the value."""
        self.dest.release()
        self._result = VALUE_DECODERS[self.kind](self.buffer)
        self.buffer = bytearray()

    def value(self) -> Any:
        """Return the value."""
        return self._result

    def view(self, entry: Entry) -> Any:
        """Return the value: such leaves have no views."""
        return self._result


VALUE_DECODERS: Final[dict[str, Callable[[bytearray], Any]]] = {
    "str": lambda data: data.decode("utf-8", "surrogatepass"),
    "bytes": bytes,
    "bytearray": lambda data: data,
    # Reached only with allow_pickle=True; decode.py refuses before anything is read.
    "pickle": lambda data: pickle.loads(data),
}


def memory_order(shape: Sequence[int], stride: Sequence[int]) -> str | None:
    """Return how a dense array lies in memory: "C", "F", or axes from slowest as "0,2,3,1".

    Args:
        shape: lengths of the axes.
        stride: distance of neighbours along each axis, in items.

    Returns:
        None if the items do not fill one stretch of memory, each once.
    """
    axes = sorted(range(len(shape)), key=lambda axis: -stride[axis])
    if _is_dense(shape, stride, range(len(shape))):
        return "C"
    if _is_dense(shape, stride, range(len(shape) - 1, -1, -1)):
        return "F"
    if _is_dense(shape, stride, axes):
        return ",".join(map(str, axes))
    return None


def _is_dense(shape: Sequence[int], stride: Sequence[int], axes: Sequence[int]) -> bool:
    expected = 1
    for axis in reversed(axes):
        if shape[axis] != 1:
            if stride[axis] != expected:
                return False
            expected *= shape[axis]
    return True


def axes_of(order: str, axis_count: int) -> list[int] | None:
    """Return the axes from slowest to fastest that `memory_order` wrote, or None if malformed."""
    if order == "C":
        return list(range(axis_count))
    if order == "F":
        return list(range(axis_count - 1, -1, -1))
    parts = order.split(",")
    if len(parts) != axis_count or not all(part.isdecimal() and part.isascii() for part in parts):
        return None
    axes = [int(part) for part in parts]
    return axes if sorted(axes) == list(range(axis_count)) else None
