"""The public names, and that each says what it does."""

from __future__ import annotations

import inspect

import pytest

import casckpt

PUBLIC = {
    "CasckptError", "Checkpoint", "Every", "Fold", "GcPlan", "KeepBest", "KeepEvery", "KeepLast",
    "KeepNewerThan", "Options", "PendingSave", "Pickled", "Policy", "Progress", "Result", "Run",
    "RunInfo", "Stage", "State", "Stopped", "Store", "add_arguments", "errors", "fingerprint",
    "open", "restore", "resume_choice", "save",
}  # fmt: skip

METHODS = {
    "attach_metrics", "best", "checkpoints", "close", "codings", "compact", "delete", "diff",
    "entries", "export", "gc", "get", "history", "holds_files", "import_files", "latest", "pin",
    "plan_compact", "plan_gc", "repair", "restore", "restore_files", "run", "runs", "save",
    "save_async", "save_files", "stats", "tag", "undelete", "untag", "verify", "wait",
}  # fmt: skip


def test_the_names_are_these():
    assert set(casckpt.__all__) == PUBLIC
    assert set(dir(casckpt)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(casckpt, name) is not None


def test_the_store_has_these_calls():
    found = {name for name in dir(casckpt.Store) if not name.startswith("_")}
    assert found == METHODS


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = casckpt.Nothing


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_call_is_documented_with_its_parameters(name):
    method = getattr(casckpt.Store, name)
    assert method.__doc__
    assert inspect.signature(method).return_annotation is not inspect.Signature.empty
    positional = [
        parameter
        for parameter in inspect.signature(method).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    assert len(positional) <= 4, "keyword-only past these (self, run, state, step)"


def test_records_are_frozen_dataclasses():
    for name in ("Checkpoint", "RunInfo", "GcPlan", "Options", "KeepLast", "KeepBest", "Pickled"):
        cls = getattr(casckpt, name)
        assert cls.__dataclass_params__.frozen, name


def test_one_call_forms_take_what_the_store_takes():
    for name in ("save", "restore"):
        of_store = list(inspect.signature(getattr(casckpt.Store, name)).parameters)[1:]
        assert list(inspect.signature(getattr(casckpt, name)).parameters) == of_store
