"""What verify remembers between two runs, and how a finding is put."""

from __future__ import annotations

import pytest

from casckpt.errors import Corrupt
from casckpt.store import effort, findings

STORE = b"s" * 16


def test_what_was_found_whole_is_remembered_although_nobody_says_goodbye(tmp_path, monkeypatch):
    """A kill loses what was noted in the last seconds, not all of it."""
    path = tmp_path / "journal"
    journal = effort.Journal(path, STORE, resume=False)
    journal.note(b"p" * 16, 4096)
    assert effort.Journal(path, STORE, resume=True).end(b"p" * 16) == 0
    monkeypatch.setattr(effort, "_SAVE_EVERY_S", 0.0)
    journal.note(b"q" * 16, 8192)
    again = effort.Journal(path, STORE, resume=True)
    assert [again.end(pack * 16) for pack in (b"p", b"q", b"r")] == [4096, 8192, 0]
    assert effort.Journal(path, b"t" * 16, resume=True).end(b"q" * 16) == 0
    assert effort.Journal(path, STORE, resume=False).end(b"q" * 16) == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Corrupt("damaged record", "its bytes have another id"), "its bytes have another id"),
        (Corrupt("the index is damaged"), "the index is damaged"),
        (FileNotFoundError(2, "No such file", "x.pack"), "its pack file is missing"),
        (OSError("odd"), "odd"),
    ],
)
def test_a_finding_says_why_in_one_line(error, said):
    assert findings.reason(error) == said
