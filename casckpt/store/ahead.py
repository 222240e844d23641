"""Asking the disk for records before their turn comes.

A reader that waits for one record after the other decodes nothing meanwhile. Two trajectories of
130 and 65 MB, in turns with the version before: 0.7 to 0.9 of the time over files that are not in
memory, 1.02 to 1.05 over those that are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from casckpt.errors import CasckptError
from casckpt.store import files, records

if TYPE_CHECKING:
    from casckpt.store.packs import PackFiles
    from casckpt.store.transactions import Chain


def fetch(packs: PackFiles, chains: Sequence[Chain | None]) -> None:
    """Have the kernel fetch the records of chains; what cannot be read is for the reader to say."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    for chain in chains:
        for _, row, pack in chain or ():
            end = row.offset + records.OVERHEAD_BYTES + 32 * row.ref_count + row.stored
            places.setdefault(pack.uuid, []).append((row.offset, end))
    for uuid, ranges in places.items():
        with contextlib.suppress(CasckptError, OSError), packs.borrow(uuid) as file:
            for start, end in joined(ranges):
                files.read_ahead(file.descriptor, start, end - start)


def joined(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) in order, those that touch as one: chunks of a save lie side by side."""
    ranges = sorted(ranges)
    start, end = ranges[0]
    for low, high in ranges:
        if low > end:
            yield start, end
            start = low
        end = max(end, high)
    yield start, end
