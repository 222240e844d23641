"""scikit-learn's estimators as leaves of a state: by their attributes and arrays, without pickle.

An object is taken apart as pickle would, by `__reduce_ex__`, but its parts are nodes of the state
tree: equal estimators give equal trees, and a forest that has grown shares its trees. Coming back,
only classes of scikit-learn itself are made, and of those only compiled ones by a call.
"""

from __future__ import annotations

import copyreg
import importlib
import re
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from casckpt.adapters import missing_extra
from casckpt.checkpoint.leaves import refused
from casckpt.checkpoint.opaque import OpaqueHandler
from casckpt.checkpoint.scalars import Node, malformed
from casckpt.checkpoint.tree_paths import join

try:
    import sklearn
except ModuleNotFoundError as exc:
    raise missing_extra("sklearn") from exc

if TYPE_CHECKING:
    from casckpt.checkpoint.leaves import RestoreOptions, Walker

_MODULE: Final = re.compile(r"sklearn(\.(?!tests\b|conftest\b|externals\b)[A-Za-z_]\w*)*\Z")
_NAME: Final = re.compile(r"[A-Za-z_]\w*\Z")
_HEAP_TYPE: Final = 1 << 9
"""CPython's Py_TPFLAGS_HEAPTYPE: set for classes written in Python."""

_GLOBAL: Final = np.random.mtrand._rand
"""Numpy's own generator, from which an estimator without a random_state draws."""

_last = threading.local()


class _Streams(threading.local):
    """Generators of the estimator at hand: the steps that share one go on from one another's draws.

    Attributes:
        numbers: by id, while one is taken apart: its number, and the generator, which keeps the id.
        made: by number, as one is built, from the first part that holds it on.
    """

    def __init__(self) -> None:
        self.numbers: dict[int, tuple[int, Any]] | None = None
        self.made: dict[int, Any] = {}


_streams = _Streams()


class _Part:
    """Stands in the tree for what has no form there: object arrays and numpy's generators."""

    __module__ = "sklearn"  # by which the tree finds the handler below

    def __init__(self, kind: str, attributes: Node, parts: list[Any]) -> None:
        self.kind = kind
        self.attributes = attributes
        self.parts = parts


class SklearnHandler(OpaqueHandler):
    """Estimators and what they are made of."""

    library = "scikit-learn"
    noun = "an estimator"

    def flatten(self, value: Any, path: str, walker: Walker) -> Node | None:
        """Return the node of an object of scikit-learn."""
        if isinstance(value, type):
            return None
        is_outermost = _streams.numbers is None
        if is_outermost:
            _streams.numbers = {}
        try:
            if not isinstance(value, _Part):
                value = _take_apart(value, path)
            elif value.kind == "stream":
                value = _numbered(value.attributes, *value.parts)
            nodes = [
                walker.walk(_standing(part), join(path, index))
                for index, part in enumerate(value.parts)
            ]
        finally:
            if is_outermost:
                _streams.numbers = None
        return {"x": ["sklearn", value.kind], "a": value.attributes, "v": nodes}

    def build(
        self, kind: str, attributes: Node, children: list[Any], options: RestoreOptions
    ) -> Any:
        """Return the object of its parts."""
        try:
            if kind == "object":
                return make_object(attributes, *children)
            if kind == "array":
                return _object_array(attributes, children)
            if kind == "stream":
                return _stream(attributes, children)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as exc:
            raise malformed(f"an object that scikit-learn refuses: {str(exc)[:200]}") from exc
        raise malformed(f"a value of scikit-learn of the unknown kind {kind[:40]!r}")


HANDLER = SklearnHandler()


def _take_apart(value: Any, path: str) -> _Part:
    cls = type(value)
    if not _is_ours(cls):
        raise refused(value, path, "its class is not one of scikit-learn's own")
    reduced = value.__reduce_ex__(4)
    if not isinstance(reduced, tuple) or len(reduced) < 2 or any(reduced[3:]):
        raise refused(value, path, "it does not say what it is made of")
    make, arguments = reduced[:2]
    state = reduced[2] if len(reduced) > 2 else None
    new = getattr(copyreg, "__newobj__", None)
    if make is new and arguments[0] is cls:
        made, rest = "new", arguments[1:]
    elif make is cls and is_called(cls):
        made, rest = "call", arguments
    elif arguments[:1] == (cls,) and getattr(make, "__name__", "").startswith("__pyx_unpickle"):
        # Compiled classes without state of their own; the number is a checksum of their fields.
        made, rest = "new", ()
        state = arguments[2] if len(arguments) > 2 and state is None else state
    else:
        raise refused(value, path, "it is made by a function")
    about = {"class": [cls.__module__, cls.__qualname__], "made": made}
    return _Part("object", about, [tuple(rest), state])


def _standing(value: Any) -> Any:
    """Return a value with stand-ins for what the tree cannot hold, containers gone through."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return _Part("array", list(value.shape), list(value.ravel()))
    if isinstance(value, np.ndarray) and not value.flags.forc:
        # A view into a larger array: its axes keep their order in memory, and so sums theirs.
        return value.copy(order="K")
    if isinstance(value, np.random.RandomState):
        return _Part("stream", "old", [value])
    if isinstance(value, np.random.Generator):
        return _Part("stream", "new", [value])
    if type(value) is dict:
        return {key: _standing(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_standing(item) for item in value)
    return value


def _numbered(kind: Node, generator: Any) -> _Part:
    """Return the part of a generator, numbered in the order in which it will be built.

    Where the estimator has it once more, its number is all. What draws from numpy's own goes on
    with that, whose state is the run's.
    """
    if generator is _GLOBAL:
        return _Part("stream", "global", [])
    numbers = _streams.numbers
    assert numbers is not None, "within flatten"
    if id(generator) in numbers:
        return _Part("stream", ["same", numbers[id(generator)][0]], [])
    numbers[id(generator)] = (len(numbers), generator)
    is_old = kind == "old"
    state = generator.get_state(legacy=False) if is_old else generator.bit_generator.state
    return _Part("stream", [kind, len(numbers) - 1], [_shared(state)])


def _shared(state: Any) -> Any:
    """Return the state of a generator; the trees of a forest have the same one a hundred times."""
    key = state["state"].get("key") if isinstance(state["state"], dict) else None
    if key is not None:
        last = getattr(_last, "key", None)
        if last is not None and np.array_equal(last, key):
            return {**state, "state": {**state["state"], "key": last}}
        _last.key = key
    return state


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "sklearn"


def make_object(about: Node, arguments: tuple[Any, ...], state: Any) -> Any:
    """Return an object of its class, what its class is called or made with, and its state."""
    cls = own_class(*about["class"])
    if about["made"] == "new":
        value = cls.__new__(cls, *arguments)
    elif not is_called(cls):
        raise malformed(f"a class written in Python that is called: {cls.__qualname__}")
    else:
        value = cls(*arguments)
    _check_tree(cls, arguments, state)
    if state is not None:
        if callable(getattr(value, "__setstate__", None)):
            value.__setstate__(state)
        else:
            value.__dict__.update(state)
    return value


def is_called(cls: type) -> bool:
    """Return whether objects of a class are made by calling it: compiled ones only."""
    return not cls.__flags__ & _HEAP_TYPE


def own_class(module: str, name: str) -> Any:
    """Return a class of scikit-learn; only modules of the installed package are imported."""
    if not _MODULE.match(module) or not _NAME.match(name):
        raise malformed(f"a class outside scikit-learn: {module[:60]}.{name[:60]}")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise malformed(f"{module}.{name} is not in scikit-learn {sklearn.__version__}") from None
    if not isinstance(cls, type) or not _is_ours(cls):
        raise malformed(f"a class outside scikit-learn: {module[:60]}.{name[:60]}")
    return cls


def _check_tree(cls: type, arguments: tuple[Any, ...], state: Any) -> None:
    """Refuse a decision tree whose nodes lead outside it: scikit-learn follows them unchecked."""
    if cls.__name__ != "Tree" or state is None:
        return
    nodes, count = state["nodes"], state["node_count"]
    left, right, feature = nodes["left_child"], nodes["right_child"], nodes["feature"]
    is_inner = left != -1
    inside = (left < count) & (right < count) & (left >= -1) & (right >= -1)
    used = (feature >= 0) & (feature < arguments[0]) & (left > np.arange(len(nodes)))
    if len(nodes) != count or not inside.all() or not used[is_inner].all():
        raise malformed("a decision tree whose nodes lead outside it")


def _object_array(shape: Node, items: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(shape)


def _stream(about: Node, parts: list[Any]) -> Any:
    """Return a generator; `about` is a kind alone where no two parts could have the same one."""
    if about == "global":
        return _GLOBAL
    if isinstance(about, str):
        return _new_stream(about, *parts)
    kind, number = about
    if kind != "same":
        _streams.made[number] = _new_stream(kind, *parts)
    return _streams.made[number]


def _new_stream(kind: Node, state: Any) -> Any:
    name = state["bit_generator"]
    if name not in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"):
        raise malformed(f"a generator of the unknown kind {str(name)[:40]!r}")
    bits = getattr(np.random, name)()
    if kind == "old":
        old = np.random.RandomState(bits)
        old.set_state(state)
        return old
    bits.state = state
    return np.random.Generator(bits)
