"""Read every row of an index and leave with status 0: `python -m casckpt.store.walk INDEX`.

Run as a child by `opening.walk_index`: a damaged LMDB file can kill the process that reads it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from casckpt.errors import CasckptError, Corrupt
from casckpt.store import layout, records, rows
from casckpt.store.environment import Environment
from casckpt.store.index_writer import read_roots
from casckpt.store.pages import check_pages


def walk(index: Path) -> None:
    """Decode every row and check the roots checksum; raises Corrupt at the first damage."""
    data = index / "data.mdb"
    if data.is_file() and data.stat().st_size > 0:
        check_pages(data)
    environment = Environment(index, readonly=True)
    try:
        with environment.read() as tx:
            for _, value in tx.scan("packs"):
                rows.PackRow.decode(value)
            for key, value in tx.scan("objects"):
                rows.ObjectRow.decode(value)
                if len(key) != 32:
                    raise Corrupt("damaged index", "an objects key of another length")
            count = total = 0
            for table in layout.TABLES:
                if table in ("meta", "objects", "packs"):
                    continue
                for key, value in tx.scan(table):
                    if table in layout.ROOT_TABLES and rows.Row.decode(value).is_root:
                        count += 1
                        total += records.row_hash(table, key, value)
            if (count, total % 2**128) != read_roots(tx):
                raise Corrupt("damaged index", "the roots checksum does not fit the rows")
    finally:
        environment.close()


if __name__ == "__main__":
    try:
        walk(Path(sys.argv[1]))
    except CasckptError as exc:
        sys.stderr.write(f"{exc.why or exc.what}\n")
        sys.exit(13)
