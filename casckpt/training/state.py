"""The state of a training loop: named parts that are saved and restored together."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from casckpt.errors import BadRequest

STREAM: Final = "random_state"
"""The key under which the state of a generator stands in a checkpoint."""


class State:
    """Named parts of a training loop; each is an attribute.

        state = casckpt.State(model=model, best=0.0, losses=[])
        state.best = 0.9

    A part is anything that a state tree may hold, an object with `state_dict()` and
    `load_state_dict()`, or a random number generator (`random.Random`, numpy's, torch's). On
    restore, objects and arrays take their values in place, and lists and dicts of plain values
    stay the same objects; other plain values are set anew. Parts that were added while training,
    and are in the checkpoint only, come back as attributes.

    Args:
        parts: name to part.

    Raises:
        BadRequest: a part has a name that State needs itself.
    """

    casckpt_into: ClassVar[str] = "parts"
    """Each part is filled by itself; see casckpt/checkpoint/into.py."""

    def __init__(self, **parts: Any) -> None:
        object.__setattr__(self, "_parts", {})
        for name, part in parts.items():
            setattr(self, name, part)

    def __getattr__(self, name: str) -> Any:
        """Return a part."""
        try:
            return object.__getattribute__(self, "_parts")[name]
        except (KeyError, AttributeError):  # the latter while it is being unpickled or copied
            raise AttributeError(f"the state has no part {name!r}") from None

    def __setattr__(self, name: str, part: Any) -> None:
        """Add a part, or replace one."""
        if name.startswith("_") or hasattr(type(self), name):
            raise BadRequest(
                f"a part of a state cannot be called {name!r}",
                "the name is one that State uses itself",
                "choose another name",
            )
        self._parts[name] = part

    def __delattr__(self, name: str) -> None:
        """Remove a part."""
        if name not in self._parts:
            raise AttributeError(f"the state has no part {name!r}")
        del self._parts[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is a part of that name."""
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the parts."""
        return iter(self._parts)

    def __dir__(self) -> list[str]:
        """Return the parts besides what every object has."""
        return sorted({*super().__dir__(), *self._parts})

    def __repr__(self) -> str:
        """Return the names of the parts and their types."""
        parts = ", ".join(f"{name}={type(part).__name__}" for name, part in self._parts.items())
        return f"State({parts})"

    def state_dict(self) -> dict[str, Any]:
        """Return the parts by name, as a checkpoint shows them; nothing is copied."""
        return {name: self._shown(part) for name, part in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take parts as `state_dict` gave them.

        Objects take their plain state; every other part is replaced. Parts that `state` lacks
        stay as they are.
        """
        for name, value in state.items():
            own = self._parts.get(name)
            shown = self._shown(own)
            if value is shown or (hasattr(value, "load_state_dict") and _same(value, shown)):
                continue  # it took its values in place
            if hasattr(shown, "load_state_dict"):
                shown.load_state_dict(value)
            else:
                setattr(self, name, value)

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield the parameters of modules among the parts, as a checkpoint names them."""
        for name, part in self._parts.items():
            named = getattr(self._shown(part), "named_parameters", None)
            if callable(named):
                for path, parameter in named():
                    yield f"{name}.{path}", parameter

    def _shown(self, part: Any) -> Any:
        """Return what stands for a part in a checkpoint: itself, or an object in its place."""
        return GeneratorPart(part) if is_generator(part) else part


def tree_of(state: Any) -> Any:
    """Return the state of a loop, if a resume can restore into it.

    Raises:
        BadRequest: nothing can be restored into it.
    """
    if isinstance(state, dict | list) or callable(getattr(state, "load_state_dict", None)):
        return state
    raise BadRequest(
        f"the state is a {type(state).__name__}",
        "a resume restores into it, so it must be able to change",
        "pass a dict, a casckpt.State, or an object with load_state_dict()",
    )


class GeneratorPart:
    """A random number generator with the calls of an object that has state.

    Args:
        generator: of `random`, numpy or torch.
    """

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Return what the generator continues from."""
        if isinstance(self.generator, random.Random):
            return {STREAM: self.generator.getstate()}
        if hasattr(self.generator, "bit_generator"):
            return {STREAM: self.generator.bit_generator.state}
        return {STREAM: self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the generator continue from there."""
        found = state[STREAM]
        if isinstance(self.generator, random.Random):
            self.generator.setstate(found)
        elif hasattr(self.generator, "bit_generator"):
            self.generator.bit_generator.state = found
        else:
            self.generator.set_state(found)


def generators_in(state: Any) -> dict[str, Any]:
    """Return the states of the generators among the parts of a State, by name."""
    parts = state._parts if isinstance(state, State) else {}
    return {
        name: GeneratorPart(part).state_dict() for name, part in parts.items() if is_generator(part)
    }


def restore_generators(state: Any, held: Mapping[str, Any]) -> None:
    """Let the generators among the parts of a State continue from there."""
    parts = state._parts if isinstance(state, State) else {}
    for name, found in held.items():
        if is_generator(parts.get(name)):
            GeneratorPart(parts[name]).load_state_dict(found)


def is_generator(part: Any) -> bool:
    """Return whether it is a random number generator whose state can be had and set."""
    if isinstance(part, type):
        return False
    if isinstance(part, random.Random) and not isinstance(part, random.SystemRandom):
        return True
    if hasattr(getattr(part, "bit_generator", None), "state"):
        return True
    cls = type(part)
    return cls.__module__.partition(".")[0] in ("numpy", "torch") and all(
        callable(getattr(part, name, None)) for name in ("get_state", "set_state")
    )


def _same(one: Any, other: Any) -> bool:
    """Return whether two stand for the same part: what wraps one is made anew at each look."""
    if type(one) is not type(other):
        return False
    return any(
        getattr(one, name, None) is not None and getattr(one, name) is getattr(other, name, None)
        for name in ("generator", "module")
    )
