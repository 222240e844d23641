"""The common part of handlers for objects without arrays of their own, such as boosters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from casckpt.checkpoint.scalars import Node, malformed

if TYPE_CHECKING:
    from casckpt.checkpoint.leaves import Leaf, RestoreOptions, Slot, Target
    from casckpt.checkpoint.manifest import Entry


class OpaqueHandler:
    """All of a `Handler` but `flatten` and `build`, for objects that are taken apart and put back.

    Such an object is put in place of what `into` has there, and neither shares memory nor takes
    an array or a sparse tensor.

    Attributes:
        library: whose objects they are, for messages.
        noun: what one of them is called, with its article.
    """

    library: ClassVar[str]
    noun: ClassVar[str]

    def link(self, leaves: list[Leaf]) -> None:
        """Do nothing: what these objects are made of has handlers of its own."""

    def allocate(self, entry: Entry, options: RestoreOptions, memory: memoryview | None) -> Slot:
        """Refuse: no leaf is an array of the library."""
        raise malformed(f"{entry.path}: an array of {self.library}")

    def is_leaf(self, value: Any) -> bool:
        """Return False."""
        return False

    def bind(self, target: Any, entry: Entry) -> Target | str:
        """Say that the object takes no array."""
        return f"an array in the checkpoint, {self.noun} in into"

    def bind_built(self, target: Any, kind: str, attributes: Node) -> Target | str:
        """Say that the object takes no sparse tensor."""
        return f"a {kind} in the checkpoint, {self.noun} in into"

    def state_problems(self, target: Any, plain: Any) -> list[str] | None:
        """Return none."""
        return []

    def load_state(self, target: Any, plain: Any) -> None:
        """Have an object with a `load_state_dict` take its state."""
        target.load_state_dict(plain)
