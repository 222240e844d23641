"""What a function calls is followed, however it is reached; what is loaded counts."""

from __future__ import annotations
import __future__

import ast
import importlib
import itertools
import linecache
import logging
import sys
import textwrap
import types

import pytest

import casckpt

_numbers = itertools.count()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write and import a package of `main` and others; give the module `main`."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(**modules: str):
        # Always the same name, as in the next process: names of modules count here and there.
        name = "coded"
        for known in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[known]
        folder = tmp_path / f"{next(_numbers)}"
        (folder / name).mkdir(parents=True)
        monkeypatch.syspath_prepend(str(folder))
        (folder / name / "__init__.py").write_text("")
        for module, text in modules.items():
            path = folder / name / f"{module}.py"
            path.write_text(textwrap.dedent(text).replace("PKG", name))
        importlib.invalidate_caches()
        return importlib.import_module(f"{name}.main")

    return make


HELPERS = """
    import contextlib, functools

    @functools.lru_cache
    def cached(x):
        return x + 1

    def plain(x):
        return x + 1

    @contextlib.contextmanager
    def around(x):
        yield x + 1

    @functools.singledispatch
    def many(x):
        return x

    @many.register(int)
    def _(x):
        return x + 1

    class Scaler:
        by = (1, 2)

        def run(self, x):
            return self.inner(x)

        def inner(self, x):
            return x + 1
"""

FOLLOWED = {
    "a cached function of a module": ("from PKG import helpers", "helpers.cached(x)"),
    "a partial": (
        "import functools\nfrom PKG import helpers\np = functools.partial(helpers.plain)",
        "p(x)",
    ),
    "a module of a package": ("import PKG.helpers", "PKG.helpers.plain(x)"),
    "a bound method": ("from PKG.helpers import Scaler\nrun = Scaler().run", "run(x)"),
    "an object": ("from PKG.helpers import Scaler\nscaler = Scaler()", "scaler.run(x)"),
    "a context manager": ("from PKG.helpers import around", "around(x).__enter__()"),
    "a dispatcher": ("from PKG.helpers import many", "many(x)"),
    "an array operator": (
        "import numpy as np\nfrom PKG.helpers import plain\nv = np.vectorize(plain)",
        "v(x)",
    ),
}  # fmt: skip


def of_main(package, imports, body, helpers=HELPERS):
    main = f"{imports}\n\ndef extract(x):\n    return {body}\n"
    module = package(main=main, helpers=helpers)
    assert module.extract(1) == 2
    return casckpt.fingerprint(module.extract)


@pytest.mark.parametrize("name", FOLLOWED)
def test_it_is_followed(package, name):
    first = of_main(package, *FOLLOWED[name])
    assert first == of_main(package, *FOLLOWED[name])
    assert first != of_main(package, *FOLLOWED[name], HELPERS.replace("x + 1", "1 + x"))


CLASS = """
    import functools
    from dataclasses import dataclass, field

    def again(x):
        return x + 5

    class Inner:
        def go(self):
            return 6

    class Scaler:
        sizes = (1, 2)
        inner = Inner

        @functools.cached_property
        def held(self):
            return 3

        @functools.lru_cache
        def kept(self):
            return 4

        @property
        def rate(self):
            return 7

        @rate.setter
        def rate(self, value):
            self.value = value * 8

        part = functools.partialmethod(again)

    @dataclass
    class Config:
        names: list = field(default_factory=lambda: [9])

    def extract(x):
        return Scaler(), Config()
"""


@pytest.mark.parametrize("number", ["2", "3", "4", "5", "6", "7", "8", "9"])
def test_all_of_a_class_is_followed(package, number):
    first = casckpt.fingerprint(package(main=CLASS).extract)
    assert first == casckpt.fingerprint(package(main=CLASS).extract)
    assert first != casckpt.fingerprint(package(main=CLASS.replace(number, "11")).extract)


def test_a_method_counts_with_those_it_calls(package):
    def of(helpers):
        return casckpt.fingerprint(package(main="from PKG.helpers import *", helpers=helpers).run)

    bound = f"""{HELPERS}
    class Kept(Scaler):
        def state_dict(self):
            return {{}}

        def load_state_dict(self, state):
            pass

    run = Kept().run
    """
    assert of(bound) == of(bound) != of(bound.replace("return x + 1", "return 1 + x"))


# ---- a source that is edited while the program runs

EDITED = """
# one
def extract(x):
    return x + 1

def other(x):
    return [y * 2 for y in (x, 3.0, {4, 5})]

twice = lambda x: x * 2
"""


def edit(module, old, new):
    text = EDITED.replace(old, new)
    assert text != EDITED
    with open(module.__file__, "w") as file:  # noqa: PTH123
        file.write(text + "\n")  # another size: caches of lines look at it


@pytest.fixture
def fresh(package):
    def make(name, text=EDITED):
        return casckpt.fingerprint(getattr(package(main=text), name))

    return make


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("extract", "x + 1", "x + 2"),
        ("other", "y * 2", "y * 3"),
        ("other", "4, 5", "4, 6"),
        ("twice", "x * 2", "x + 2"),
        ("extract", "def extract", "def renamed"),
        ("extract", "return x + 1", "return (x + 1"),
        ("twice", EDITED[20:], ""),
    ],
)
def test_what_is_loaded_counts_and_not_what_the_file_has_become(
    package, fresh, caplog, name, old, new
):
    module = package(main=EDITED)
    edit(module, old, new)
    with caplog.at_level(logging.WARNING):
        found = casckpt.fingerprint(getattr(module, name))
    shown = "<lambda>" if name == "twice" else name
    assert f"the source of {shown}" in caplog.text
    assert found not in (fresh(name), fresh(name, EDITED.replace("+ 1", "+ 9")))
    if "(" not in new and name in EDITED.replace(old, new):
        assert found != fresh(name, EDITED.replace(old, new))


@pytest.mark.parametrize(("old", "new"), [("# one", "# one\n\n# two\n"), ("x + 1", "x + 5")])
def test_edits_elsewhere_change_nothing(package, fresh, caplog, old, new):
    module = package(main=EDITED)
    edit(module, old, new)
    found = [casckpt.fingerprint(module.other), casckpt.fingerprint(module.twice)]
    assert found == [fresh("other"), fresh("twice")]
    assert not caplog.text


def test_a_cell_of_a_notebook_is_understood(caplog):
    text = "import asyncio\nawait asyncio.sleep(0)\ndef f(x: int) -> int:\n    return x + 1\n"
    name = f"<cell-{next(_numbers)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    # Cells inherit what an earlier cell imported from the future.
    flags = __future__.annotations.compiler_flag | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    cell = compile(text, name, "exec", flags)
    code = next(one for one in cell.co_consts if isinstance(one, types.CodeType))
    assert casckpt.fingerprint(types.FunctionType(code, {"__name__": "cell"}))
    assert "edited" not in caplog.text


def test_a_run_keeps_the_old_result_apart_from_the_new_source(package, store):
    module = package(main=EDITED)
    with store.run("one") as run:
        edit(module, "x + 1", "x + 2")
        assert run.cached("y", module.extract, 1) == 2
    importlib.reload(module)
    with store.run("two") as run:
        assert run.cached("y", module.extract, 1) == 3
