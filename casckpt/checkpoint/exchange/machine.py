"""A pickle reader that calls nothing by name: every name goes through a table of ours.

It executes the stack machine of Python's `pickletools` (protocols 0 to 5) over plain values.
Python's own Unpickler is not used: it looks names up in modules, lets BUILD set attributes of
any object it has reached, and reserves memory for whatever index or length a pickle claims.
Here a name gives a `Symbol` or an error, a Symbol is called only if it has `make`, BUILD works
only on a `Node` of ours, and no length is believed beyond the end of the file.

Source: Lib/pickletools.py of CPython, which documents each opcode.
"""

from __future__ import annotations

import struct
from codecs import escape_decode
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar, Final

from casckpt.checkpoint.exchange.refusals import allowed_bytes, damaged, refused, unreadable
from casckpt.checkpoint.exchange.symbols import MAPPINGS, Node, Symbol, hashable
from casckpt.errors import Corrupt

OPERATIONS_MAX: Final = 50_000_000
"""Opcodes in one pickle: a minute's work, and 10 GiB of objects at the very most."""

_LINE_MAX: Final = 1 << 20
_ITEM_BYTES: Final = 64  # what a place in a container takes, with its value
_SMALL_READ: Final = 1 << 16
_MALFORMED: Final = (
    IndexError,
    KeyError,
    ValueError,  # covers UnicodeDecodeError
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)


class Machine:
    """Reads pickles from a file, one after the other.

    Args:
        file: read from its position on; left after the last pickle read.
        find: (module, name) -> Symbol; raises PickleRefused for what is not allowed.
        end: the position behind the last byte that may be read.
        path: for messages.
        persistent: what a persistent id stands for; none are expected if None.
    """

    def __init__(
        self,
        file: IO[bytes],
        find: Callable[[str, str], Symbol],
        end: int,
        path: str,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._file = file
        self._find = find
        self._end = end
        self._path = path
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._left = allowed_bytes(end)
        self._is_inner = False

    def load(self) -> Any:
        """Read one pickle and return its value, with Nodes still in it.

        Raises:
            PickleRefused: if it names or calls something that is not allowed.
            Corrupt: if it is no pickle, or a malformed one.
        """
        self._stack, self._marks, self._memo = [], [], {}
        read, actions = self._file.read, self._ACTIONS
        try:
            for _ in range(OPERATIONS_MAX):
                code = read(1)
                if code == b".":
                    return self._stack.pop()
                action = actions.get(code)
                if action is None:
                    raise ValueError(f"no opcode {code!r}" if code else "it ends too early")
                action(self)
        except _MALFORMED as exc:
            raise self._malformed(exc) from exc
        raise damaged(self._path, f"a pickle of more than {OPERATIONS_MAX} operations")

    def inner(self) -> Any:
        """Read a pickle that stands here inside this one; for `Node.follow`.

        Raises:
            ValueError: this one stands inside another itself.
            PickleRefused, Corrupt: as `load`.
        """
        if self._is_inner:
            raise ValueError("pickles nested too deep")
        machine = Machine(self._file, self._find, self._end, self._path)
        machine._is_inner, machine._left = True, self._left
        value = machine.load()
        self._left = machine._left
        return value

    def _malformed(self, exc: Exception) -> Corrupt:
        why = str(exc) if isinstance(exc, ValueError) else type(exc).__name__
        return damaged(self._path, f"malformed pickle: {ascii(why)[1:-1][:200]}")

    # ---- bytes

    def take(self, count: int) -> bytes:
        """Return the next bytes of the file; also for `Node.follow`.

        Raises:
            ValueError: there are not so many.
        """
        if count > _SMALL_READ and count > self._end - self._file.tell():
            raise ValueError(f"{count} bytes claimed beyond the end")
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("it ends too early")
        return data

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def _line(self) -> bytes:
        line = self._file.readline(_LINE_MAX)
        if not line.endswith(b"\n"):
            raise ValueError("an unfinished line")
        return line[:-1]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    # ---- scalars

    def _int_line(self) -> None:
        line = self._line()
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))

    def _long_line(self) -> None:
        self._push(int(self._line().rstrip(b"L")))

    def _long(self, form: str) -> None:
        count = self._number(form)
        if count < 0:
            raise ValueError("a negative length")
        self._push(int.from_bytes(self.take(count), "little", signed=True))

    def _float_line(self) -> None:
        self._push(float(self._line()))

    def _text(self, form: str) -> None:
        self._push(self.take(self._number(form)).decode("utf-8", "surrogatepass"))

    def _unicode_line(self) -> None:
        self._push(self._line().decode("raw-unicode-escape"))

    def _string_line(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] not in b"\"'" or line[:1] != line[-1:]:
            raise ValueError("a string without quotes")
        self._push(_python2_text(escape_decode(line[1:-1])[0]))

    def _string(self, form: str) -> None:
        count = self._number(form)
        if count < 0:
            raise ValueError("a negative length")
        self._push(_python2_text(self.take(count)))

    def _bytes(self, form: str) -> None:
        self._push(self.take(self._number(form)))

    def _bytearray(self) -> None:
        data = self.take(self._number("<Q"))
        self._push(self._call("builtins", "bytearray", (data,)))

    # ---- containers

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _tuple(self) -> None:
        items = self._pop_mark()
        self._push(tuple(items))

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _list(self) -> None:
        items = self._pop_mark()
        self._push(items)

    def _append(self) -> None:
        value = self._stack.pop()
        self._extend([value])

    def _appends(self) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError(f"items appended to a {type(target).__name__}")
        target.extend(items)

    def _dict(self) -> None:
        items = self._pop_mark()
        self._push({})
        self._set_items(items)

    def _setitem(self) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        self._set_items([key, value])

    def _setitems(self) -> None:
        self._set_items(self._pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in MAPPINGS or len(items) % 2:
            raise ValueError(f"items set in a {type(target).__name__}")
        for place in range(0, len(items), 2):
            key = items[place]
            if isinstance(key, Node | Symbol):
                raise unreadable(
                    self._path,
                    "a dict in it is keyed by an array, a tensor or a type",
                    "key it by names or numbers, as state_dict() does, and save it again",
                )
            target[hashable(key)] = items[place + 1]

    def _set(self) -> None:
        self._push(self._call("builtins", "set", ([],)))

    def _additems(self) -> None:
        items = self._pop_mark()
        target = self._stack[-1]
        if not isinstance(target, Node):
            raise ValueError(f"items added to a {type(target).__name__}")
        self._charge((items,))
        target.build(items)

    def _frozenset(self) -> None:
        items = self._pop_mark()
        self._push(self._call("builtins", "frozenset", (items,)))

    # ---- stack and memo

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _pop_to_mark(self) -> None:
        self._pop_mark()

    def _dup(self) -> None:
        self._push(self._stack[-1])

    def _get(self, place: int) -> None:
        self._push(self._memo[place])

    def _put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    # ---- names and calls

    def _call(self, module: str, name: str, args: tuple[Any, ...]) -> Any:
        return self._invoke(self._find(module, name), args)

    def _invoke(self, symbol: Any, args: Any) -> Any:
        if not isinstance(symbol, Symbol):
            raise refused(self._path, f"a call of a {type(symbol).__name__}")
        if symbol.make is None:
            raise refused(self._path, f"a call of {symbol.name}")
        if type(args) is not tuple:
            raise ValueError("arguments that are no tuple")
        self._charge(args)
        return symbol.make(args)

    def _charge(self, args: tuple[Any, ...]) -> None:
        # A constructor copies what it is given, and a pickle can give the same a million times.
        self._left -= _ITEM_BYTES * len(args)
        for value in args:
            kind = type(value)
            if kind in (str, bytes):
                self._left -= len(value)
            elif kind in (list, tuple) or kind in MAPPINGS:
                self._left -= _ITEM_BYTES * len(value)
        if self._left < 0:
            raise ValueError("it makes far more than it holds")

    def _global(self) -> None:
        module, name = self._line().decode(), self._line().decode()
        self._push(self._find(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name that is no text")
        self._push(self._find(module, name))

    def _reduce(self) -> None:
        args = self._stack.pop()
        self._stack[-1] = self._invoke(self._stack[-1], args)

    def _new_with_keywords(self) -> None:
        if self._stack.pop():
            raise ValueError("keyword arguments")
        self._reduce()

    def _inst(self) -> None:
        module, name = self._line().decode(), self._line().decode()
        args = self._pop_mark()
        self._push(self._call(module, name, tuple(args)))

    def _obj(self) -> None:
        args = self._pop_mark()
        self._push(self._invoke(args[0], tuple(args[1:])))

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Node):
            self._charge(state if type(state) is tuple else (state,))
            target.build(state)
            target.follow(self)
        elif type(target) is OrderedDict and type(state) is dict and set(state) <= {"_metadata"}:
            # The one attribute a state dict carries: the versions of its modules.
            target.__dict__.update(state)
        else:
            raise refused(self._path, f"state set on a {type(target).__name__}")

    def _persistent_line(self) -> None:
        self._push(self._line().decode("ascii"))
        self._persistent_id()

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise ValueError("an object kept outside the pickle")
        self._push(self._persistent(self._stack.pop()))

    def _extension(self) -> None:
        raise refused(self._path, "an extension code of copyreg")

    def _skip(self, count: int) -> None:
        self.take(count)

    _ACTIONS: ClassVar[dict[bytes, Callable[[Machine], None]]] = {
        b"\x80": lambda m: m._skip(1),  # PROTO
        b"\x95": lambda m: m._skip(8),  # FRAME: buffering advice only
        b"N": lambda m: m._push(None),
        b"\x88": lambda m: m._push(True),
        b"\x89": lambda m: m._push(False),
        b"I": _int_line,
        b"J": lambda m: m._push(m._number("<i")),
        b"K": lambda m: m._push(m._number("<B")),
        b"M": lambda m: m._push(m._number("<H")),
        b"L": _long_line,
        b"\x8a": lambda m: m._long("<B"),
        b"\x8b": lambda m: m._long("<i"),
        b"F": _float_line,
        b"G": lambda m: m._push(m._number(">d")),
        b"V": _unicode_line,
        b"\x8c": lambda m: m._text("<B"),
        b"X": lambda m: m._text("<I"),
        b"\x8d": lambda m: m._text("<Q"),
        b"S": _string_line,
        b"U": lambda m: m._string("<B"),
        b"T": lambda m: m._string("<i"),
        b"C": lambda m: m._bytes("<B"),
        b"B": lambda m: m._bytes("<I"),
        b"\x8e": lambda m: m._bytes("<Q"),
        b"\x96": _bytearray,
        b"(": _mark,
        b")": lambda m: m._push(()),
        b"t": _tuple,
        b"\x85": lambda m: m._tuple_of(1),
        b"\x86": lambda m: m._tuple_of(2),
        b"\x87": lambda m: m._tuple_of(3),
        b"]": lambda m: m._push([]),
        b"l": _list,
        b"a": _append,
        b"e": _appends,
        b"}": lambda m: m._push({}),
        b"d": _dict,
        b"s": _setitem,
        b"u": _setitems,
        b"\x8f": _set,
        b"\x90": _additems,
        b"\x91": _frozenset,
        b"0": _pop,
        b"1": _pop_to_mark,
        b"2": _dup,
        b"g": lambda m: m._get(int(m._line())),
        b"h": lambda m: m._get(m._number("<B")),
        b"j": lambda m: m._get(m._number("<I")),
        b"p": lambda m: m._put(int(m._line())),
        b"q": lambda m: m._put(m._number("<B")),
        b"r": lambda m: m._put(m._number("<I")),
        b"\x94": lambda m: m._put(len(m._memo)),
        b"c": _global,
        b"\x93": _stack_global,
        b"R": _reduce,
        b"\x81": _reduce,  # NEWOBJ: the same for a table of constructors
        b"\x92": _new_with_keywords,
        b"i": _inst,
        b"o": _obj,
        b"b": _build,
        b"P": _persistent_line,
        b"Q": _persistent_id,
        b"\x82": _extension,
        b"\x83": _extension,
        b"\x84": _extension,
    }


def _python2_text(data: bytes) -> str | bytes:
    """Return a Python 2 `str`: text if it reads as text, else bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data
