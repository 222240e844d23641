"""The source of a function as it is loaded: its syntax tree, or its bytecode.

What is on disk may have been edited since it was imported. So the file is compiled, and its text
stands for a function only if that gives the code which is loaded; lines may have moved.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import linecache
import sys
import textwrap
import types
import warnings
from collections.abc import Iterable
from typing import Any, Final

from casckpt.logs import logger

_FUTURES: Final = functools.reduce(
    lambda flags, name: flags | getattr(__future__, name).compiler_flag,
    # The flag of nested scopes says something else on code objects.
    set(__future__.all_feature_names) - {"nested_scopes", "generators"},
    0,
)

_LOADED: Final = "loaded "
"""What the text of a function begins with whose source was edited since."""

_Codes = dict[str, list[types.CodeType]]


def source_of(code: types.CodeType) -> str:
    """Return the syntax of a function; its bytecode where no source says what is loaded."""
    # Code objects are equal across files; what surrounds them, such as decorators, is not.
    return _source(code.co_filename, code)


def edited(code: types.CodeType) -> str | None:
    """Return what is loaded of a function whose source says something else; None if it does not."""
    text = source_of(code)
    return text if text.startswith(_LOADED) else None


@functools.lru_cache(4096)
def _source(_file: str, code: types.CodeType) -> str:
    lines = _lines(code)
    if not lines:
        return _bytecode(code)
    whole = "".join(lines)
    found = _find(code, _codes(whole, code.co_filename, code.co_flags & _FUTURES))
    text = None if found is None else _block(found, lines)
    if found is None or text is None:
        logger.warning(
            "the source of %s in %s is not what this program has loaded, it was edited since: "
            "results are kept for what is loaded",
            code.co_qualname,
            code.co_filename,
        )
        return _loaded(code)
    if code.co_name == "<lambda>":
        return _lambda(code, text, _lambda_nodes(whole).get(found.co_firstlineno, []))
    return _syntax(text)


def _lines(code: types.CodeType) -> list[str]:
    try:
        return inspect.findsource(code)[0]
    except (OSError, TypeError, IndexError):
        # There is none; or it has become shorter than it was.
        return linecache.getlines(code.co_filename)


def _block(code: types.CodeType, lines: list[str]) -> str | None:
    """Return the lines of a function; None if they were changed just now."""
    try:
        again, first = inspect.findsource(code)
    except (OSError, TypeError, IndexError):
        return None
    if again != lines:
        return None
    return textwrap.dedent("".join(inspect.getblock(lines[first:])))


@functools.lru_cache(64)
def _codes(text: str, file: str, flags: int) -> _Codes:
    """Return the code objects of a file by qualified name; none if it does not compile."""
    for more in (0, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):  # which notebooks allow
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = compile(text, file, "exec", flags | more, dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        found: _Codes = {}
        _collect(module, found)
        return found
    return {}


def _collect(code: types.CodeType, found: _Codes) -> None:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.setdefault(constant.co_qualname, []).append(constant)
            _collect(constant, found)


def _find(code: types.CodeType, codes: _Codes) -> types.CodeType | None:
    """Return the code in a file that does the same, at the same line if there are many."""
    wanted = _shape(code)
    same = [one for one in codes.get(code.co_qualname, ()) if _shape(one) == wanted]
    for one in same:
        if one.co_firstlineno == code.co_firstlineno:
            return one
    return same[0] if same else None


def _shape(code: types.CodeType) -> str:
    """Return all that a code object does, without files and lines."""
    about = (
        code.co_name,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
        (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
        code.co_code.hex(),
        code.co_exceptiontable.hex(),
    )
    return f"{about!r} {_spelled(code.co_consts)}"


def _spelled(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return f"<{_shape(value)}>"
    if isinstance(value, tuple):
        return f"({' '.join(map(_spelled, value))})"
    if isinstance(value, frozenset):
        return f"{{{' '.join(sorted(map(_spelled, value)))}}}"
    return repr(value)


def _loaded(code: types.CodeType) -> str:
    return f"{_LOADED}{sys.implementation.cache_tag} {_shape(code)}"


def _syntax(text: str) -> str:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    return ast.dump(without_docstrings(tree, ast.walk(tree)))


def without_docstrings(tree: ast.AST, nodes: Iterable[ast.AST]) -> ast.AST:
    """Return a tree, changed where it is: docstrings do nothing. `nodes` are all of it."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0]
            text = first.value if isinstance(first, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                node.body = node.body[1:]
    return tree


def _lambda(code: types.CodeType, text: str, nodes: list[ast.Lambda]) -> str:
    """Return the spelling of a lambda; its lines may hold other code, and need not parse alone."""
    syntax = _lambdas(text)
    spelled = f"{syntax or text.strip()} {_constants(code)}"
    if len(nodes) == 1:
        node = nodes[0]
        is_whole = node.lineno == node.end_lineno if not syntax else ast.dump(node) == syntax
        if is_whole:
            return spelled
    # Lambdas of one line, or one cut off where the line ends: the syntax tells nothing apart.
    return f"{spelled} {_loaded(code)}"


@functools.lru_cache(64)
def _lambda_nodes(text: str) -> dict[int, list[ast.Lambda]]:
    """Return the lambdas of a file by the line they begin in."""
    found: dict[int, list[ast.Lambda]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            found.setdefault(node.lineno, []).append(node)
    return found


def _lambdas(text: str) -> str:
    """Return the syntax of the lambdas in some lines, as far as they parse."""
    for candidate in (text.strip(), text.strip().rstrip(",)"), f"({text.strip()})"):
        try:
            tree = ast.parse(candidate)
        except SyntaxError:
            continue
        return " ".join(ast.dump(one) for one in ast.walk(tree) if isinstance(one, ast.Lambda))
    return ""


def _constants(code: types.CodeType) -> str:
    """Return the names and constants of a code object."""
    inner = " ".join(_constants(one) for one in code.co_consts if isinstance(one, types.CodeType))
    plain = [one for one in code.co_consts if not isinstance(one, types.CodeType)]
    return f"{code.co_varnames} {code.co_names} {_stable(plain)} {inner}"


def _stable(values: list[Any]) -> str:
    return repr([sorted(map(repr, one)) if isinstance(one, frozenset) else one for one in values])


def _bytecode(code: types.CodeType) -> str:
    inner = " ".join(_bytecode(one) for one in code.co_consts if isinstance(one, types.CodeType))
    return f"{code.co_code.hex()} {_constants(code)} {inner}"
