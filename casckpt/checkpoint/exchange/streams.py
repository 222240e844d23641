"""numpy's generators in pickles: what samplers and estimators keep of their randomness."""

from __future__ import annotations

from typing import Any, Final

from casckpt.checkpoint.exchange.plain import Table
from casckpt.checkpoint.exchange.symbols import Node, Resolve, Symbol

KINDS: Final = {
    "MT19937": "_mt19937",
    "PCG64": "_pcg64",
    "PCG64DXSM": "_pcg64",
    "Philox": "_philox",
    "SFC64": "_sfc64",
}


class IgnoredNode(Node):
    """Something that is read past: it takes any state, and must not be left over as a value."""

    def __init__(self, name: str) -> None:
        self._name = name

    def build(self, state: Any) -> None:
        """Forget the state."""

    def finish(self, resolve: Resolve) -> Any:
        """Refuse: nothing of it is kept."""
        del resolve
        raise ValueError(f"a {self._name} where a value is expected")


class BitsNode(Node):
    """A bit generator; BUILD brings its state."""

    def __init__(self) -> None:
        self.state: Any = None

    def build(self, state: Any) -> None:
        """Take the state: a dict, since numpy 2 with its seed sequence."""
        self.state = state[0] if type(state) is tuple and state else state

    def finish(self, resolve: Resolve) -> Any:
        """Return its state: a bit generator of its own is no leaf."""
        return resolve(self.state)


class StreamNode(Node):
    """A RandomState or a Generator."""

    def __init__(self, kind: str, bits: BitsNode) -> None:
        self._kind = kind
        self._bits = bits
        self._state: Any = None

    def build(self, state: Any) -> None:
        """Take the state of a RandomState, which is beside that of its bits."""
        self._state = state

    def finish(self, resolve: Resolve) -> Any:
        """Return the generator, standing where it stood."""
        import numpy as np

        state = resolve(self._bits.state if self._state is None else self._state)
        if type(state) is not dict or state.get("bit_generator") not in KINDS:
            raise ValueError("a generator without its state")
        bits = getattr(np.random, state["bit_generator"])()
        if self._kind == "Generator":
            bits.state = state
            return np.random.Generator(bits)
        old = np.random.RandomState(bits)
        old.set_state(state)
        return old


def stream_table() -> Table:
    """Return the symbols of numpy.random."""

    def bits(args: tuple[Any, ...]) -> Any:
        del args  # the state names its kind
        return BitsNode()

    def stream(kind: str) -> Any:
        def make(args: tuple[Any, ...]) -> Any:
            inner = args[0] if args and isinstance(args[0], BitsNode) else BitsNode()
            return StreamNode(kind, inner)

        return make

    def ignored(args: tuple[Any, ...]) -> Any:
        del args
        return IgnoredNode("SeedSequence")

    home = "numpy.random._pickle"
    table = {
        (home, "__bit_generator_ctor"): Symbol(f"{home}.bits", bits),
        (home, "__randomstate_ctor"): Symbol(f"{home}.state", stream("RandomState")),
        (home, "__generator_ctor"): Symbol(f"{home}.generator", stream("Generator")),
    }
    for name, module in KINDS.items():
        table[f"numpy.random.{module}", name] = Symbol(f"numpy.random.{name}")
    for name in ("__pyx_unpickle_SeedSequence", "SeedSequence"):
        table["numpy.random.bit_generator", name] = Symbol(f"numpy.random.{name}", ignored)
    return table
