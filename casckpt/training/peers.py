"""The processes that train one run together: what they tell each other, and who decides.

Each process has the run and the state. The first one decides where the run goes on, writes and
logs; the others follow. A framework's adapter brings the channel between them: the composition
root names its module with `register_lazy`, and it is asked only if the program has imported the
framework.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from casckpt import errors
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import BadRequest, CasckptError, OperationFailed
from casckpt.logs import logger
from casckpt.training import extras

if TYPE_CHECKING:
    from casckpt.api import Store

_PATIENCE_S: Final = 15.0
"""After so long it is said who is waited for: processes of one launch come within seconds."""


class Channel(Protocol):
    """Calls that every process makes at the same place; each returns when all have made it."""

    rank: int
    size: int

    def broadcast(self, payload: bytes | None) -> bytes:
        """Return what the first process gave; the others give None."""

    def gather(self, payload: bytes) -> list[bytes] | None:
        """Return what each process gave, by rank, in the first one; None in the others."""

    def most(self, numbers: Sequence[int]) -> list[int]:
        """Return, place by place, the largest number that any process gave."""


class Peers:
    """The processes of a run; this class is for one that trains alone, where nothing is sent.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this process decides, writes and logs."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Return the first process's value, a tree as a state may be, in all of them."""
        return value

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all processes in the first one, None in the others."""
        return [value]

    def most(self, numbers: Sequence[int]) -> list[int]:
        """Return, place by place, the largest number that any process gave."""
        return list(numbers)

    def lead(self, decide: Callable[[], Any]) -> Any:
        """Return what `decide` returns in the first process, where alone it is called.

        Raises:
            CasckptError: what it raises there, in all processes.
        """
        return decide()

    def name_of(self, store: Store, checkpoint: Checkpoint | None) -> str:
        """Return what the other processes find a checkpoint by; empty for none, or if alone."""
        return ""


ALONE: Final = Peers()


class Connected(Peers):
    """Several processes, with a channel between them."""

    def __init__(self, channel: Channel) -> None:
        """Talk over a channel."""
        self._channel = channel
        self.rank, self.size = channel.rank, channel.size

    def share(self, value: Any) -> Any:
        """See `Peers`."""
        return _unpack(self._channel.broadcast(_pack(value) if self.leads else None))

    def gather(self, value: Any) -> list[Any] | None:
        """See `Peers`."""
        found = self._channel.gather(_pack(value))
        return None if found is None else [_unpack(payload) for payload in found]

    def most(self, numbers: Sequence[int]) -> list[int]:
        """See `Peers`."""
        return self._channel.most(numbers)

    def lead(self, decide: Callable[[], Any]) -> Any:
        """See `Peers`."""
        if self.leads:
            try:
                value = decide()
            except Exception as exc:
                self.share({"error": _described(exc)})
                raise
            self.share({"value": value})
            return value
        told = self.share(None)
        if "error" in told:
            raise _error(told["error"])
        return told["value"]

    def name_of(self, store: Store, checkpoint: Checkpoint | None) -> str:
        """See `Peers`."""
        return name_of(store, checkpoint)


_lazy: dict[str, str] = {}


def register_lazy(root_module: str, adapter_module: str) -> None:
    """Name the module whose `connect` returns the channel of a framework, None without one."""
    _lazy[root_module] = adapter_module


def connect(world_size: int | None, rank: int | None) -> Peers:
    """Return the processes that this one trains with.

    Args:
        world_size: how many the caller says there are; 1 for this process alone, None for those
            that the framework knows.
        rank: number of this one, as the caller says.

    Raises:
        BadRequest: the caller, or the launcher, says another thing than the framework.
    """
    if world_size == 1:
        return ALONE
    channel = _channel()
    size = 1 if channel is None else channel.size
    said = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    if channel is None and said > 1:
        raise BadRequest(
            f"{said} processes train together, and are not connected",
            "torch.distributed is not initialised in this process",
            "call torch.distributed.init_process_group() first, or pass world_size=1 for a run"
            " of this process alone",
        )
    if world_size not in (None, size) or (rank is not None and channel and rank != channel.rank):
        raise BadRequest(
            f"rank {rank} of world_size {world_size}",
            f"torch.distributed has {size} processes here",
            "leave both out",
        )
    return ALONE if channel is None else Connected(channel)


def name_of(store: Store, checkpoint: Checkpoint | None) -> str:
    """Return a REF of a checkpoint, be it of another store; empty for none."""
    if checkpoint is None:
        return ""
    home = store._find(checkpoint)[0]
    return f"id:{checkpoint.id}" if home is store else f"{home.path}::id:{checkpoint.id}"


def place_of(store: Store, run: str) -> dict[str, str]:
    """Return what must be the same in all processes of a run."""
    path = str(store.path.resolve())
    return {"run": run, "store": path, "host": socket.gethostname()}


def check_place(mine: dict[str, str], first: dict[str, str]) -> None:
    """Compare this process's place with the first one's.

    Raises:
        BadRequest: they are not at the same run of one store.
    """
    for name in ("run", "host", "store"):
        if mine[name] != first[name]:
            raise BadRequest(
                f"the first process has the {name} {first[name]}, this one {mine[name]}",
                "the processes of a run use one store on one machine",
                "open the same run in all of them",
            )


def _channel() -> Channel | None:
    for root, module in _lazy.items():
        if root in sys.modules:
            late = threading.Timer(_PATIENCE_S, _say_who_is_missing)
            late.daemon = True
            with contextlib.suppress(RuntimeError):  # no thread can begin: nobody is told
                late.start()
            try:
                found: Channel | None = importlib.import_module(module).connect()
            finally:
                late.cancel()
            if found is not None:
                return found
    return None


def _say_who_is_missing() -> None:
    logger.warning(
        "waiting for the other processes: all of them have to call store.run;"
        " a run of this process alone takes world_size=1"
    )


def _pack(value: Any) -> bytes:
    return json.dumps(extras.pack(value)).encode()


def _unpack(payload: bytes) -> Any:
    return extras.unpack(json.loads(payload))


def _described(error: Exception) -> list[Any]:
    """Return an error as a tree; details that are none stay behind."""
    if not isinstance(error, CasckptError):
        why = f"{type(error).__name__}: {error}"
        return ["OperationFailed", "the first process of the training failed", why, "", {}]
    details = dict(error.details)
    try:
        extras.pack(details)
    except CasckptError:
        details = {}
    return [type(error).__name__, error.what, error.why, error.hint, details]


def _error(described: list[Any]) -> CasckptError:
    name, what, why, hint, details = described
    cls = getattr(errors, name, OperationFailed)
    error: CasckptError = cls(what, why, hint, **details)
    return error
