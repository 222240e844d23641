"""What arrays of numpy and tables of pandas are: numbers, types, and all that is said of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casckpt.training.fingerprints.spelling import put

if TYPE_CHECKING:
    from casckpt.training.fingerprints.values import Fingerprinter


def write_array(to: Fingerprinter, value: Any, out: bytearray, where: str) -> None:
    """Append an array or a scalar of numpy."""
    dtype = value.dtype
    kind = "" if type(value).__name__ == "ndarray" else type(value).__qualname__
    put(out, b"a", f"{kind} {dtype.descr if dtype.names else dtype.str} {dtype.name}".encode())
    to.write(tuple(value.shape), out, where)
    mask = getattr(value, "mask", None) if hasattr(value, "hardmask") else None
    # The numbers below a mask count; its own tobytes would fill them in.
    plain = value if mask is None else value.data
    if dtype.hasobject or dtype.kind == "T":  # bytes of strings of any length are addresses
        to.write(plain.reshape(-1).tolist(), out, where)
    else:
        to.put_bytes(out, b"b", _bytes_of(plain))
    if mask is not None:
        masked = mask.tobytes()
        to.write(masked if any(masked) else None, out, where)
        to.write((value.fill_value, bool(value.hardmask)), out, where)


def _bytes_of(value: Any) -> bytes | memoryview:
    try:
        return memoryview(value).cast("B") if value.flags.c_contiguous else value.tobytes()
    except (ValueError, TypeError, NotImplementedError, BufferError):
        return value.tobytes()  # type: ignore[no-any-return]  # a dtype without buffers: dates


def write_frame(to: Fingerprinter, value: Any, out: bytearray, where: str) -> None:
    """Append a data frame, or a series."""
    put(out, b"F", type(value).__qualname__.encode())
    if hasattr(value, "columns"):
        _column(to, value.index, out, where)
        for position, name in enumerate(value.columns):
            to.write(name, out, where)
            _column(to, value.iloc[:, position], out, f"{where}[{name!r}]")
        _axis(to, b"I", value.index, out, where)
        _axis(to, b"J", value.columns, out, where)
    else:
        to.write(getattr(value, "name", None), out, where)
        _column(to, value.index, out, where)
        _column(to, value, out, where)
        _axis(to, b"I", value.index, out, where)
    about = getattr(value, "attrs", None)
    if about:
        out += b"A"
        with to.leniently():
            to.write(dict(about), out, where)


def _axis(to: Fingerprinter, tag: bytes, axis: Any, out: bytearray, where: str) -> None:
    """Append what an index says besides its values; nothing for a plain one."""
    names = tuple(axis.names)
    about: list[Any] = []
    if any(name is not None for name in names):
        about.append(("names", names))
    freq = getattr(axis, "freqstr", None)
    if freq is not None:
        about.append(("freq", freq))
    if tag == b"J" and hasattr(axis, "categories"):
        about.append(("type", type(axis).__qualname__))
    levels = getattr(axis, "levels", ())
    if about:
        out += tag
        to.write(about, out, where)
    for level in [axis, *levels]:
        _categories(to, level, out, where)


def _column(to: Fingerprinter, column: Any, out: bytearray, where: str) -> None:
    put(out, b"C", str(column.dtype).encode())
    values = column.to_numpy()
    if values.dtype.hasobject:
        to.write(values.tolist(), out, where)
    else:
        write_array(to, values, out, where)
    if not hasattr(type(column), "names"):  # of an index `_axis` writes them
        _categories(to, column, out, where)


def _categories(to: Fingerprinter, column: Any, out: bytearray, where: str) -> None:
    """Append the categories of a column in their order, those not used too."""
    categories = getattr(getattr(column, "dtype", None), "categories", None)
    if categories is not None:
        out += b"K"
        to.write((list(categories), bool(column.dtype.ordered)), out, where)
