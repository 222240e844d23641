"""One framework a file; `import casckpt` loads none of them."""

from __future__ import annotations

from casckpt.errors import MissingExtra


def missing_extra(name: str) -> MissingExtra:
    """Return the error for a framework that is not installed.

    Args:
        name: of the framework, which is also that of the extra.
    """
    return MissingExtra(
        f"casckpt.{name} needs {name}, which is not installed",
        "frameworks are optional, and none comes with casckpt itself",
        f"pip install 'casckpt[{name}]'",
    )
