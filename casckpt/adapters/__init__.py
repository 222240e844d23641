"""One framework a file; `import casckpt` loads none of them."""

from __future__ import annotations

from casckpt.errors import MissingExtra


def missing_extra(name: str, *, extra: str = "") -> MissingExtra:
    """Return the error for a framework that is not installed.

    Args:
        name: of the adapter, and of the framework.
        extra: of the framework and its extra, where they are called otherwise.
    """
    extra = extra or name
    return MissingExtra(
        f"casckpt.{name} needs {extra}, which is not installed",
        "frameworks are optional, and none comes with casckpt itself",
        f"pip install 'casckpt[{extra}]'",
    )
