"""Print tests/vectors/blake3.json as a C header, for the smoke test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

VECTORS = Path(__file__).resolve().parents[2] / "tests" / "vectors" / "blake3.json"


def main() -> None:
    """Write the header to standard output."""
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    lines = [
        f'static const char VECTOR_KEY[] = "{vectors["key"]}";',
        f'static const char VECTOR_CONTEXT[] = "{vectors["context_string"]}";',
        "static const struct { size_t len; const char *hash, *keyed, *derived; } VECTORS[] = {",
    ]
    for case in vectors["cases"]:
        texts = ", ".join(f'"{case[name]}"' for name in ("hash", "keyed_hash", "derive_key"))
        lines.append(f"    {{{case['input_len']}, {texts}}},")
    sys.stdout.write("\n".join([*lines, "};", ""]))


if __name__ == "__main__":
    main()
