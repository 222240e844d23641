"""What is imported inside a function counts, whether it is loaded yet or not."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap

import pytest

import casckpt

HELPERS = """
import functools

def plain(x):
    return x + 1

@functools.singledispatch
def many(x):
    return x

@many.register(int)
def _(x):
    return x + 1

class Scaler:
    def run(self, x):
        return x + 1
"""

MIDDLE = """
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        from PKG.nothing import Nothing
    if not TYPE_CHECKING:
        def by_condition(x):
            return plain(x)
    try:
        from .helpers import plain as found
    except ImportError:
        found = None
    from PKG.helpers import *
    from . import main, helpers

    def by_star(x):
        return plain(x)

    def by_module(x):
        return helpers.plain(x)

    def inside(x):
        from . import helpers as h
        return h.plain(x)

    def around(x):
        return main.extract(x) if x > 9 else by_star(x)

    TABLE = {}
    TABLE["plain"] = lambda x: inside(x)
"""

INSIDE = {
    "from": "from PKG.helpers import plain\n    return plain(x)",
    "as": "from .helpers import plain as p\n    return p(x)",
    "a module": "import PKG.helpers\n    return PKG.helpers.plain(x)",
    "a module as": "import PKG.helpers as h\n    return h.plain(x)",
    "a module of its package": "from . import helpers\n    return helpers.plain(x)",
    "a class": "from .helpers import Scaler\n    return Scaler().run(x)",
    "a dispatcher": "from .helpers import many\n    return many(x)",
    "in a function inside": "def inner():\n        from .helpers import plain\n"
    "        return plain(x)\n    return [inner() for _ in [1]][0]",
    "by way of another": "from .middle import found\n    return found(x)",
    "by way of a condition": "from .middle import by_condition\n    return by_condition(x)",
    "by way of a star": "from .middle import by_star\n    return by_star(x)",
    "by way of a star alone": "from .middle import plain\n    return plain(x)",
    "by way of a module": "from .middle import by_module\n    return by_module(x)",
    "by way of an import inside": "from .middle import inside\n    return inside(x)",
    "by way of a module that imports this": "from .middle import around\n    return around(x)",
    "by way of a table": "from .middle import TABLE\n    return TABLE['plain'](x)",
    "into a global": "global helpers\n    from . import helpers\n    return helpers.plain(x)",
}


def of_inside(package, body, helpers=HELPERS):
    main = f"import PKG\n\ndef extract(x):\n    {body}\n"
    module = package(main=textwrap.dedent(main), helpers=helpers, middle=MIDDLE)
    before = casckpt.fingerprint(module.extract)
    assert "coded.helpers" not in sys.modules
    assert module.extract(1) == 2
    assert "coded.helpers" in sys.modules
    assert casckpt.fingerprint(module.extract) == before
    return before


@pytest.mark.parametrize("name", INSIDE)
def test_an_import_inside_a_function_is_followed_loaded_or_not(package, name):
    first = of_inside(package, INSIDE[name])
    more = f"{HELPERS}# why\ndef other():\n    return 4\n"
    assert first == of_inside(package, INSIDE[name], more)
    assert first != of_inside(package, INSIDE[name], HELPERS.replace("x + 1", "1 + x"))


@pytest.mark.parametrize("text", ["raise SystemExit", "def plain(x:", "", None])
def test_nothing_is_imported_for_a_fingerprint(package, text):
    main = "def extract(x):\n    from PKG.helpers import plain\n    return plain(x)\n"
    others = {} if text is None else {"helpers": text}
    found = [casckpt.fingerprint(package(main=main, **others).extract) for _ in range(2)]
    assert found[0] == found[1]
    assert "coded.helpers" not in sys.modules


def test_a_module_edited_after_it_was_imported_inside_is_kept_apart(package, caplog):
    main = "def extract(x):\n    from PKG.helpers import plain\n    return plain(x)\n"
    helpers = "def plain(x):\n    return x + 1\n"
    edited = helpers.replace("1", "22")
    module = package(main=main, helpers=helpers)
    before = casckpt.fingerprint(module.extract)
    module.extract(1)
    with open(sys.modules["coded.helpers"].__file__, "w") as file:  # noqa: PTH123
        file.write(edited)
    found = casckpt.fingerprint(module.extract)
    assert "the source of plain" in caplog.text
    importlib.reload(sys.modules["coded.helpers"])
    reloaded = casckpt.fingerprint(module.extract)
    fresh = casckpt.fingerprint(package(main=main, helpers=edited).extract)
    assert reloaded == fresh
    assert len({before, found, fresh}) == 3


INSTALLED = """
import sys, casckpt
from casckpt.training.fingerprints import modules

def extract(x):
    import json, os.path, numpy.linalg as linalg, xml.dom, nothing_of_this_name.inner
    from pytest import mark
    return json, linalg, mark

def known(x):
    import json, numpy.linalg, pytest

read = []
real = modules._read
modules._read = lambda file: read.append(file) or real(file)
found = [casckpt.fingerprint(extract)]
assert not {"numpy", "pytest"} & sys.modules.keys()
known(1)
found.append(casckpt.fingerprint(extract))
print(len(set(found)), found[0], read)
"""


def test_of_what_is_installed_the_version_counts_and_nothing_is_read(tmp_path):
    def run(text):
        (tmp_path / "script.py").write_text(text)
        command = [sys.executable, str(tmp_path / "script.py")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    count, first, read = run(INSTALLED)
    assert (count, read) == ("1", "[]")
    other = "import importlib.metadata\nimportlib.metadata.version = lambda name: '0.1'\n"
    assert run(other + INSTALLED)[1] != first
