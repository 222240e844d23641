"""The demo, whole: it is what a newcomer runs first."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_the_demo_trains_dies_goes_on_and_measures(own_cli, tmp_path):
    answer = own_cli("demo", "--json", "--keep", tmp_path / "demo")
    assert answer.code == 0, answer.err
    measured = json.loads(answer.out)
    assert measured["restored_equals_killed"] is True
    assert measured["resumed_at"]["demo/network"] >= 4
    assert measured["acknowledged_before_kill"] >= 4
    assert 0 < measured["stored_after_gc_bytes"] < measured["stored_bytes"]
    assert measured["stored_bytes"] < measured["peer_stored_bytes"]
    own_cli.store = tmp_path / "demo" / "store"
    assert own_cli("verify").code == 0


def test_the_demo_overwrites_nothing(cli, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    assert cli("demo", "--keep", tmp_path / "precious").code == 2
    assert (tmp_path / "precious" / "file").read_text() == "x"
