"""In-tree PEP 517 backend: emit the cffi source, then let setuptools do the rest.

setuptools reads the extension from pyproject.toml and needs its C file to exist. A `setup.py` with
`cffi_modules` would do the same at the price of one more file at the top level.
"""

from __future__ import annotations

from typing import Any

from build_cffi import emit
from setuptools import build_meta
from setuptools.build_meta import (
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def build_wheel(*args: Any, **kwargs: Any) -> str:
    """Build the wheel from freshly emitted C."""
    emit()
    return str(build_meta.build_wheel(*args, **kwargs))


def build_editable(*args: Any, **kwargs: Any) -> str:
    """Build in place from freshly emitted C."""
    emit()
    return str(build_meta.build_editable(*args, **kwargs))


def build_sdist(*args: Any, **kwargs: Any) -> str:
    """Build the source distribution; setuptools wants every listed source to exist."""
    emit()
    return str(build_meta.build_sdist(*args, **kwargs))
