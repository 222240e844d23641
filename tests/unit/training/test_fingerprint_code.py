"""What a function calls is followed, however it is reached; what is loaded counts."""

from __future__ import annotations
import __future__

import ast
import importlib
import itertools
import linecache
import logging
import types

import pytest

import casckpt

_numbers = itertools.count()


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


# ---- tables, classes and objects of a module

HELD = {
    "a table": ("def g(x): return x + 1\nOPS = {'g': g}", "OPS['g'](x)"),
    "a table of tables": ("def g(x): return x + 1\nOPS = {'a': [('g', g)]}", "OPS['a'][0][1](x)"),
    "a list": ("def g(x): return x + 1\nSTEPS = [g, len]", "STEPS[0](x)"),
    "a tuple": ("def g(x): return x + 1\nSTEPS = (g, 1)", "STEPS[0](x)"),
    "a set": ("def g(x): return x + 1\nSTEPS = {g, len, sorted}", "[g(x) for g in STEPS - {len}]"),
    "a list of objects": (
        "class C:\n    def g(self, x): return x + 1\nSTEPS = [C(), C()]",
        "STEPS[0].g(x)",
    ),
    "a partial in a table": (
        "import functools\ndef g(x, y): return x + y\nOPS = {1: functools.partial(g, 1)}",
        "OPS[1](x)",
    ),
    "which is which": (
        "def f(x): 0\ndef g(x): 0\nOPS = {'a': f, 'b': g} if 1 < 2 else {'a': g, 'b': f}",
        "OPS['a'](x)",
    ),
    "a setting of an object": (
        "class C:\n    def __init__(self, n): self.n = n\nobj = C(1)",
        "obj.n + x",
    ),
    "how an object is made": (
        "def make():\n    c = C()\n    c.n = 1\n    return c\nclass C: pass\nobj = make()",
        "obj.n + x",
    ),
    "a list of a class": ("class C:\n    n = [1]", "C.n[0] + x"),
    "a dict of a class": ("class C:\n    n = {'a': (1, 2)}", "C.n['a'] + x"),
    "functions in a class": (
        "def g(x): return x + 1\nclass C:\n    ops = {'g': g, 'other': object()}",
        "C.ops['g'](x)",
    ),
    "a metaclass": (
        "class M(type):\n    def g(cls, x): return x + 1\nclass C(metaclass=M): pass",
        "C.g(x)",
    ),
}


@pytest.mark.parametrize("is_from", [True, False])
@pytest.mark.parametrize("name", HELD)
def test_what_tables_classes_and_objects_hold_is_followed(package, name, is_from):
    helpers, body = HELD[name]
    head = "from PKG.helpers import *" if is_from else "from PKG import helpers"
    body = body if is_from else body.replace("OPS", "helpers.OPS").replace("STEPS", "helpers.STEPS")
    body = body if is_from else body.replace("obj", "helpers.obj").replace("C.", "helpers.C.")

    def of(text):
        main = f"{head}\n\ndef extract(x):\n    return {body}\n"
        return casckpt.fingerprint(package(main=main, helpers=text).extract)

    assert of(helpers) == of(helpers) != of(helpers.replace("1", "2"))


STATE = """
    import time

    class Client:
        answers = {}

        def __init__(self):
            self.began, self.calls = time.time(), 0

        @classmethod
        def only(cls):
            return cls.answers.setdefault("only", cls())

    client = Client()
    clients = {}
    DATA = {"a": 1, "b": [2]}
    LONG = [[0.5] * 10] * 3000

    def extract(x):
        client.calls += 1
        clients[x] = Client.only()
        return clients, DATA, LONG
"""


def test_data_and_what_changes_while_a_program_runs_do_not_count(package):
    module = package(main=STATE)
    first = casckpt.fingerprint(module.extract)
    module.extract(1)
    module.DATA["c"] = 3
    assert casckpt.fingerprint(module.extract) == first
    assert casckpt.fingerprint(package(main=STATE.replace('"a": 1', '"a": 4')).extract) == first


SETTINGS = """
    import types
    rate = 2
    names = ("a", "b")
    memory = 0
    box = types.SimpleNamespace()

    def reads(x):
        return x * rate

    def reads_inside(x):
        return [y * rate for y in (x,)] + [(lambda: names)()]

    def calls(x):
        return reads(x)

    def has_an_attribute_so_named(x):
        return x.rate + box.names

    def counts(x):
        global memory
        memory += 1
        return x
"""


@pytest.mark.parametrize(
    ("function", "name", "value", "counts"),
    [
        ("reads", "rate", 3, True),
        ("reads", "rate", None, True),
        ("reads", "names", ("a",), False),
        ("reads_inside", "rate", 2.0, True),
        ("reads_inside", "names", ("a", "c"), True),
        ("calls", "rate", "two", True),
        ("has_an_attribute_so_named", "rate", 3, False),
        ("has_an_attribute_so_named", "names", (), False),
        ("counts", "memory", 5, False),
        ("counts", "__name__", "__main__", False),
    ],
)
def test_a_plain_value_of_the_module_counts_where_it_is_read(
    package, function, name, value, counts
):
    module = package(main=SETTINGS)
    before = casckpt.fingerprint(vars(module)[function])
    setattr(module, name, value)
    assert (casckpt.fingerprint(vars(module)[function]) != before) is counts


def test_a_plain_value_of_another_module_of_ours_counts(package):
    user = "from . import settings\ndef f(x): return settings.rate"
    module = package(settings=SETTINGS, main=user)
    before = casckpt.fingerprint(module.f)
    module.settings.rate = 5
    assert casckpt.fingerprint(module.f) != before


LIBRARY = {
    "a path": ("from pathlib import Path\nP = Path('{}')", "str(P)"),
    "a pattern": ("import re\nP = re.compile('{}')", "P.match"),
    "a date": ("import datetime\nP = datetime.date(2020, 1, {})", "P.day"),
    "a decimal": ("from decimal import Decimal\nP = Decimal({})", "P"),
    "a range": ("P = range({})", "len(P)"),
    "a numpy scalar": ("import numpy as np\nP = np.float32({})", "P"),
    "a dtype": ("import numpy as np\nP = np.dtype('f{}')", "P"),
    "an array": ("import numpy as np\nP = np.array([{}])", "P"),
    "a getter": ("import operator\nP = operator.itemgetter({})", "P(x)"),
    "a template": ("import string\nP = string.Template('{}')", "P"),
    "a bytearray": ("P = bytearray(b'{}')", "P"),
    "a path of a class": ("from pathlib import Path\nclass A:\n    p = Path('{}')", "A.p"),
    "a pattern of a class": ("import re\nclass A:\n    p = re.compile('{}')", "A.p"),
    "a scalar of a class": ("import numpy as np\nclass A:\n    p = np.int64({})", "A.p"),
    "an object made of another": ("P = bytearray(b'{}')\nQ = memoryview(P)", "Q"),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_what_a_module_makes_of_libraries_counts(package, name):
    made, body = LIBRARY[name]
    text = f"{made}\n\nUNUSED = object()\n\ndef extract(x):\n    return {body}\n"

    def of(value):
        return casckpt.fingerprint(package(main=text.format(value)).extract)

    assert of(4) == of(4) != of(8)
    unrelated = text.format(4).replace("object()", "object")
    assert casckpt.fingerprint(package(main=unrelated).extract) == of(4)
