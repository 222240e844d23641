"""Notes on the host are their owner's alone."""

from __future__ import annotations

import os
import stat

from casckpt.hostnotes import read_note, state_folder, write_note


def test_notes_and_their_folders_are_private_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = state_folder("verify") / "note.json"
    before = os.umask(0)
    try:
        write_note(path, {"a": 1})
    finally:
        os.umask(before)
    assert read_note(path) == {"a": 1}
    modes = [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent, path.parents[1])]
    assert modes == [0o600, 0o700, 0o700]


def test_a_note_that_cannot_be_written_or_read_is_none(tmp_path):
    (tmp_path / "file").write_text("[1]")
    assert read_note(tmp_path / "file") == {}
    write_note(tmp_path / "file" / "below" / "note.json", {"a": 1})
    assert read_note(tmp_path / "file" / "below" / "note.json") == {}
