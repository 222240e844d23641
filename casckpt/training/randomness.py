"""The random number generators of the process: all captured together, all put back together.

Python's and numpy's are here. A framework's come from its adapter: the composition root names
the module with `register_lazy`, and it is asked only if the program has imported the framework.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from casckpt.logs import logger

Streams = dict[str, Any]
"""Name of a provider to what it captured: plain trees of numbers, bytes, arrays."""


class Provider(Protocol):
    """The generators of one library, those that exist without anybody holding them."""

    def capture(self) -> Any:
        """Return the state of all of them, as a tree that a checkpoint can hold."""

    def restore(self, captured: Any) -> None:
        """Put a captured state back; a generator that is not there any more is left out."""


_lazy: dict[str, str] = {}
_providers: dict[str, Provider] = {}


def register_lazy(root_module: str, adapter_module: str) -> None:
    """Name the module whose `RANDOMNESS` is the provider of a framework."""
    _lazy[root_module] = adapter_module
    _providers.pop(root_module, None)


def capture() -> Streams:
    """Return the state of every generator of the process."""
    streams: Streams = {"python": _python_state()}
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        streams["numpy"] = _numpy_state(numpy)
    for name in _lazy:
        provider = _provider(name)
        if provider is not None:
            streams[name] = provider.capture()
    return streams


def restore(streams: Mapping[str, Any]) -> None:
    """Put generators back as `capture` found them.

    Those of a library that the program has not imported are left out, with a warning.
    """
    for name, captured in streams.items():
        if name == "python":
            version, words, gauss = captured
            random.setstate((version, tuple(words), gauss))
        elif name == "numpy":
            _restore_numpy(captured)
        else:
            provider = _provider(name)
            if provider is None:
                logger.warning("the generators of %s are not put back: it is not imported", name)
            else:
                provider.restore(captured)


def names(streams: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a checkpoint says it has captured."""
    return tuple(f"rng {name}" for name in streams)


def _provider(name: str) -> Provider | None:
    known = _providers.get(name)
    if known is None and name in _lazy and name in sys.modules:
        known = _providers[name] = importlib.import_module(_lazy[name]).RANDOMNESS
    return known


def _python_state() -> tuple[int, list[int], float | None]:
    version, words, gauss = random.getstate()
    return version, list(words), gauss


def _numpy_state(numpy_random: Any) -> list[Any]:
    name, words, position, has_gauss, gauss = numpy_random.get_state()
    return [str(name), words, int(position), int(has_gauss), float(gauss)]


def _restore_numpy(captured: Any) -> None:
    # Not an import of our own: a program without numpy.random has no such stream to put back.
    numpy_random = importlib.import_module("numpy.random")
    name, words, position, has_gauss, gauss = captured
    numpy_random.set_state((name, words, position, has_gauss, gauss))
