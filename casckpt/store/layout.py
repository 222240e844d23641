"""Every constant that fixes bytes or names on disk; `docs/format.md` is the specification.

Nothing else in the package spells out a file name, a magic number, a size limit or a context.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024

# Names in the store folder (format.md, section 2)
FORMAT_FILE: Final = "format.json"
CURRENT_FILE: Final = "CURRENT"
INDEX_PREFIX: Final = "index."
CLEAN_FILE: Final = "clean"
PACKS_FOLDER: Final = "packs"
PACK_SUFFIX: Final = ".pack"
SESSIONS_FOLDER: Final = "sessions"
QUARANTINE_FOLDER: Final = "quarantine"
LOCK_FILE: Final = "lock"
GC_LOCK_FILE: Final = "gc.lock"
WRITER_FILE: Final = "writer"
BALLAST_FILE: Final = "ballast"
RESERVE_FOLDER: Final = "reserve"

# Version and features (section 3)
FORMAT_VERSION: Final = 1
READ_FEATURES: Final = frozenset({"packs-1", "planes-1", "entropy-1", "dictionary-1"})
WRITE_FEATURES: Final = frozenset({"packs-1", "facts-1"})
COLLECT_FEATURES: Final = frozenset({"packs-1", "facts-1"})

# Ids: BLAKE3 in derive-key mode, one context per kind (section 4)
CHUNK_CONTEXT: Final = "casckpt chunk v1"
LIST_CONTEXT: Final = "casckpt list v1"
MANIFEST_CONTEXT: Final = "casckpt manifest v1"
FACT_CONTEXT: Final = "casckpt fact v1"
SNAPSHOT_CONTEXT: Final = "casckpt snapshot v1"
ROW_CONTEXT: Final = "casckpt row v1"

# Record types (section 5)
TYPE_CHUNK: Final = 1
TYPE_LIST: Final = 2
TYPE_MANIFEST: Final = 3
TYPE_FACT: Final = 4
TYPE_SNAPSHOT: Final = 5
TYPE_NAMES: Final = {1: "chunk", 2: "list", 3: "manifest", 4: "fact", 5: "snapshot"}

# Encodings of a record's payload (section 6)
ENCODING_RAW: Final = 0
ENCODING_ZSTD: Final = 1
ENCODING_PLANES: Final = 2
ENCODING_DICTIONARY: Final = 3

# Pack files (section 5)
PACK_MAGIC: Final = b"\x89CASPACK"
PACK_HEADER_BYTES: Final = 80
RECORD_MAGIC: Final = b"\xca\x53REC\r\n\x1a"
FOOTER_MAGIC: Final = b"\xca\x53END\r\n\x1a"
PACK_SEAL_BYTES: Final = 64 * MIB
PACK_CAP_BYTES: Final = 128 * MIB

# Limits that a reader enforces before it allocates (section 5)
CHUNK_MAX_BYTES: Final = 16 * MIB
BODY_MAX_BYTES: Final = 256 * MIB
# A body above the first is at most so many times its stored form; manifests measure 10 to 30.
BODY_FREE_BYTES: Final = 16 * MIB
BODY_SWELLS_AT_MOST: Final = 100
REFS_MAX: Final = 2_000_000
CHAIN_MAX_LINKS: Final = 1000
LIST_MAX_MEMBERS: Final = 64
LIST_MAX_LEVELS: Final = 8

# Chunking (section 7)
GRID_BYTES: Final = MIB

# Index (section 8)
KEY_PART_MAX_BYTES: Final = 128
MAP_BYTES: Final = 1 << 40
MAX_READERS: Final = 1024
TRANSACTION_MAX_ROWS: Final = 2000
TRANSACTION_MAX_BYTES: Final = 2 * MIB
ONE_TRANSACTION_ROWS: Final = 1000
TABLES: Final = (
    "meta",
    "objects",
    "packs",
    "checkpoints",
    "steps",
    "runs",
    "history",
    "progress",
    "cache",
)
ROOT_TABLES: Final = frozenset({"checkpoints", "runs", "progress", "cache"})

# Instead of a pack number in a row of `objects`: repair found no copy of it (section 8)
LOST: Final = 0

# Sessions (section 9)
HEARTBEAT_S: Final = 60.0
HEARTBEAT_STALE_S: Final = 15 * 60.0
GRACE_S: Final = 3600.0

# Ballast (section 2)
BALLAST_MAX_BYTES: Final = 64 * MIB
BALLAST_MIN_BYTES: Final = 4 * MIB
RESERVE_FILES: Final = 16
# What collecting makes: a session, a pack with its folder, and what replaces the clean stamp
RESERVE_COLLECT_FILES: Final = 4
