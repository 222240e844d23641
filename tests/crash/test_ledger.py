"""Counts belong to the code they were made with, whatever its comments say."""

from __future__ import annotations

import pytest

from tests.crash import ledger
from tests.crash.ledger import digest_of

C = 'static const char *const NAME = "a // b"; /* why */\nint f(void) { return 1; }\n'
PYTHON = """
LIMIT = 1

def f(x):
    # why
    return x
"""


@pytest.fixture
def digest(tmp_path):
    """Return a function: (file name, text) to the digest of a folder with that file alone."""

    def of(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        found = digest_of([name], tmp_path)
        path.unlink()
        return found

    return of


@pytest.mark.parametrize(
    ("name", "text", "same", "different"),
    [
        ("a.c", C, C.replace("/* why */", "// since\n"), C.replace("return 1", "return 2")),
        ("a.h", C, C.replace(" /* why */", ""), C.replace("a // b", "a // c")),
        ("a.c", C, C.replace("\n", "\n\n /* x */ /* y */"), C.replace("int", "long")),
        ("a.py", PYTHON, PYTHON.replace("# why", "# since"), PYTHON.replace("= 1", "= 2")),
        ("a.py", PYTHON, PYTHON.replace("# why", '"""Return x."""'), PYTHON.replace("x", "y")),
        ("a.py", PYTHON, PYTHON.replace("= 1", '= 1\n"""Bytes."""'), PYTHON + "f(2)"),
        ("a.json", "{}", "{}", "{ }"),
    ],
)
def test_a_comment_is_no_change_and_all_else_is(digest, name, text, same, different):
    assert digest(name, text) == digest(name, same)
    assert digest(name, text) != digest(name, different)


def test_counts_go_on_with_the_same_code_and_begin_anew_with_other(monkeypatch, tmp_path):
    found = []
    for digest in ("one", "one", "other"):
        monkeypatch.setattr(ledger, "digest_of", lambda patterns, digest=digest: digest)
        now = ledger.Ledger.open(tmp_path / "result.json", (), {})
        now.count("points", 3)
        now.save()
        found.append((now.counts["points"], len(now.before)))
    assert found == [(3, 0), (6, 0), (3, 1)]
