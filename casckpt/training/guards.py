"""Guards: is this still the run that was begun? Settings compared with the line's last recorded.

Fields have names that patterns match: those of the config (`optimizer.lr`), `data` or
`data.NAME`, `env.NAME`, `model.NAME`. Each difference gets an action: raise, warn, allow, restart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, cast

from casckpt.checkpoint.environment import environment_facts
from casckpt.errors import BadRequest, ConfigMismatch
from casckpt.logs import logger

Action = Literal["raise", "warn", "allow", "restart"]
MismatchPolicy = Action | Mapping[str, Action]
Facts = dict[str, dict[str, Any]]
"""Group ("config", "data", "env", "model") to field to value."""

ACTIONS: Final = ("raise", "warn", "allow", "restart")
NOTHING: Final = "(nothing)"
WORLD_SIZE: Final = "env.world_size"
_NAMED_MAX: Final = 5
_NOT_GUARDED: Final = frozenset({"casckpt"})
_NO_MATTER: Final = frozenset({
    "device", "device_type", "gpu_id", "n_jobs", "nthread", "num_threads", "silent", "verbose",
    "verbosity", "warm_start",
})  # fmt: skip
_no_settings: set[str] = set()


@dataclass(frozen=True)
class Difference:
    """One field that is not what it was.

    Attributes:
        field: its name, as patterns match it.
        old: the value recorded.
        new: the value now.
        action: what to do about it.
        group: what it is one of: config, data, env, model.
    """

    field: str
    old: Any
    new: Any
    action: Action
    group: str = "config"

    def __str__(self) -> str:
        """Return field, old and new value."""
        return f"{self.field}: {_shown(self.old)} -> {_shown(self.new)}"


def check_policy(policy: Any) -> MismatchPolicy:
    """Return an on_mismatch that makes sense.

    Raises:
        BadRequest: it is no action and no mapping of patterns to actions.
    """
    actions = policy.values() if isinstance(policy, Mapping) else [policy]
    for action in actions:
        if action not in ACTIONS:
            raise BadRequest(
                f"on_mismatch={policy!r:.80}",
                f"an action is one of {', '.join(ACTIONS)}",
                "pass one of them, or {PATTERN: ACTION}",
            )
    return cast("MismatchPolicy", policy)


def settings(config: Any, data: Any, world_size: int) -> Facts:
    """Return the facts of a run as it is now; groups that were not given are left out."""
    facts: Facts = {"env": _environment(world_size)}
    if config is not None:
        facts["config"] = flat_config(config)
    if data is not None:
        facts["data"] = _data(data)
    return facts


def leave_out(names: Iterable[str]) -> None:
    """Take these fields out of every config of this process: they say how a script goes on."""
    _no_settings.update(names)


def flat_config(config: Any) -> dict[str, Any]:
    """Return a config as dotted names to plain values, without the fields that are left out.

    Args:
        config: a mapping (OmegaConf's included), a dataclass, an argparse Namespace, or any
            object with attributes.

    Raises:
        BadRequest: it is none of these.
    """
    fields = _fields(config)
    if fields is None:
        raise BadRequest(
            f"config is a {type(config).__name__}",
            "a config is a mapping, a dataclass or a Namespace",
            "pass config=vars(args), or a dict",
        )
    return dict(_flatten({k: v for k, v in fields.items() if k not in _no_settings}, ""))


def model_facts(state: Any) -> dict[str, Any]:
    """Return the structure of the modules in a state: parameter to dtype and shape.

    A module is what has `named_parameters`; a state without one has no structure to guard, and
    restoring into it still compares every array.
    """
    found: dict[str, Any] = {}
    for name, part in _parts(state):
        named = getattr(part, "named_parameters", None)
        if callable(named):
            for path, value in named():
                shape = "x".join(map(str, value.shape)) or "scalar"
                kind = str(value.dtype).rpartition(".")[2]
                found[f"{name}.{path}" if name else path] = f"{kind} {shape}"
    return found


def hyperparameters(state: Any) -> dict[str, Any]:
    """Return the plain values of the optimizers in a state, such as `optimizer.lr`."""
    found: dict[str, Any] = {}
    for name, part in _parts(getattr(state, "_parts", state)):
        groups = getattr(part, "param_groups", None)
        if not isinstance(groups, list):
            continue
        for number, group in enumerate(groups):
            above = name if len(groups) == 1 else f"{name}.{number}"
            found |= {
                f"{above}.{field}": _plain(value)
                for field, value in group.items()
                if field != "params" and not hasattr(value, "shape")
            }
    return found


def say_saved_wins(run: str, given: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Say which values of optimizers are not as the program has made them."""
    told = [
        f"{field} is {_shown(saved[field])}, not {_shown(value)}"
        for field, value in given.items()
        if field in saved and _differs(saved[field], value)
    ]
    if told:
        logger.info(
            "%s: what was saved wins: %s; to change it, set it between epochs() and the loop",
            run, "; ".join(told),
        )  # fmt: skip


def say_new_parameters(
    run: str, rounds: int, saved: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Warn that the rounds of a run were trained with other parameters than are given now.

    Args:
        run: name of the run.
        rounds: how many it has.
        saved: flat parameters of these.
        given: flat parameters of the program; those that only say how it works do not count.
    """
    found = compare({"config": dict(saved)}, {"config": dict(given)}, "warn")
    told = [str(one) for one in found if one.field not in _NO_MATTER]
    if told:
        logger.warning(
            "%s: other parameters than its %d rounds were trained with: %s; they count for further "
            "rounds, and resume='never' begins anew",
            run, rounds, "; ".join(told),
        )  # fmt: skip


def compare(old: Facts, new: Facts, policy: MismatchPolicy) -> list[Difference]:
    """Return what differs, with the action of each; groups that one side lacks do not count."""
    differences = []
    for group in ("config", "data", "env", "model"):
        before, now = old.get(group), new.get(group)
        if before is None or now is None:
            continue
        names = [*before, *(name for name in now if name not in before)]
        for name in names:
            if group == "env" and (name not in before or name not in now):
                continue  # a library that is imported later is no change
            was, became = before.get(name, NOTHING), now.get(name, NOTHING)
            if _differs(was, became):
                field = _field(group, name)
                action = _action(policy, field, group)
                differences.append(Difference(field, was, became, action, group))
    return differences


def obey(run: str, differences: Sequence[Difference]) -> bool:
    """Act on differences; return whether a new line has to be opened.

    Raises:
        ConfigMismatch: one of them says raise; every field is listed.
    """
    refused = [one for one in differences if one.action == "raise"]
    if refused:
        some = ", ".join(f"{one.field!r}: 'allow'" for one in refused)
        allow = f"{{{some}}}" if len(refused) <= _NAMED_MAX else "'allow'"
        raise ConfigMismatch(
            f"{run} was begun with other settings: {'; '.join(map(str, differences))}",
            f"{len(refused)} of them must not change",
            f"go on as before, or on_mismatch={allow}, or resume='never' for a new line",
            run=run,
            differences=[(one.field, one.old, one.new) for one in differences],
        )
    restart = any(one.action == "restart" for one in differences)
    loud = [one for one in differences if one.action in ("warn", "restart")]
    if loud:
        end = "; starting afresh on a new line" if restart else ""
        logger.warning("%s: changed since: %s%s", run, "; ".join(map(str, loud)), end)
    return restart


def _field(group: str, name: str) -> str:
    if group == "config":
        return name
    return group if not name else f"{group}.{name}"


def _action(policy: MismatchPolicy, field: str, group: str) -> Action:
    # The environment is the machine's, not the experiment's: it warns, or is let through. But
    # the generators and positions of so many processes are of no use to another number of them.
    is_machine = group == "env" and field != WORLD_SIZE
    if isinstance(policy, str):
        return policy if not is_machine or policy == "allow" else "warn"
    for pattern, action in policy.items():
        if fnmatchcase(field, pattern) or field.startswith(f"{pattern}."):
            return action
    return "warn" if is_machine else "raise"


def _environment(world_size: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        name: value for name, value in environment_facts().items() if name not in _NOT_GUARDED
    }
    return {**facts, "world_size": world_size}


def _data(data: Any) -> dict[str, Any]:
    if isinstance(data, Mapping):
        return {str(name): _plain(value) for name, value in data.items()}
    return {"": _plain(data)}


def _parts(state: Any) -> Iterator[tuple[str, Any]]:
    if callable(getattr(state, "named_parameters", None)):
        yield "", state
        return
    fields = _fields(state)
    for name, part in (fields or {}).items():
        yield str(name), part


def _fields(config: Any) -> Mapping[Any, Any] | None:
    """Return the fields of anything that has named ones."""
    if isinstance(config, Mapping):
        return config
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    dump = getattr(config, "model_dump", None)
    if callable(dump):  # pydantic
        return cast("Mapping[Any, Any]", dump())
    if isinstance(config, str | bytes | int | float | Sequence) or config is None:
        return None
    if isinstance(config, type) or callable(config):
        return None
    found = getattr(config, "__dict__", None)
    return found if isinstance(found, dict) else None


def _flatten(fields: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        name = f"{above}{key}"
        inner = value if isinstance(value, Mapping) else None
        if inner is None and dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = _fields(value)
        if inner is None and _is_namespace(value):
            inner = vars(value)
        if inner:
            yield from _flatten(inner, f"{name}.")
        elif _is_list(value) and any(_is_nested(item) for item in value):
            yield from _flatten(dict(enumerate(value)), f"{name}.")
        else:
            yield name, _plain(value)


def _is_namespace(value: Any) -> bool:
    return type(value).__name__ in ("Namespace", "SimpleNamespace")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or _is_list(value) or _is_namespace(value)


def _plain(value: Any) -> Any:
    """Return a value as JSON keeps it, the same in every process."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value) if isinstance(os.fspath(value), str) else repr(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(one) for one in value), key=repr)
    if _is_list(value):
        return [_plain(one) for one in value]
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return _plain(item())
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):
        return f"{getattr(value, '__module__', '')}.{name}"
    if isinstance(value, functools.partial):
        return [_plain(one) for one in (value.func, value.args, value.keywords)]
    if isinstance(getattr(value, "shape", None), tuple):
        from casckpt.training.fingerprints.values import Fingerprinter

        with contextlib.suppress(BadRequest):  # a dataset in a file, which only says what it is
            return f"{type(value).__name__} {Fingerprinter().of(value, 'a setting').hex()}"
    text = repr(value)
    return text if " at 0x" not in text else f"{type(value).__module__}.{type(value).__qualname__}"


def _differs(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float) and old != old and new != new:
        return False
    return type(old) is not type(new) or bool(old != new)


def _shown(value: Any) -> str:
    text = NOTHING if value == NOTHING else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
