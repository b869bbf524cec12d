"""Printing tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Aligned columns; the last column that a row has is not padded, and it holds errors."""
    if not rows:
        print("none")
        return
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("description", "error")))
    widths = {key: max(len(key), *(len(str(row.get(key, ""))) for row in rows)) for key in columns}
    has_text = any("description" in row or "error" in row for row in rows)
    print("  ".join([*(key.ljust(widths[key]) for key in columns), *(["description"] if has_text else [])]).rstrip())
    for row in rows:
        text = f"error: {row['error']}" if "error" in row else row.get("description", "")
        print("  ".join([*(str(row.get(key, "")).ljust(widths[key]) for key in columns), text]).rstrip())
