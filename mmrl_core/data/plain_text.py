"""Text that can be written as UTF-8: JSON may hold halves of characters, which no tokenizer and no file takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain_text(value: Any) -> Any:
    """The value with lone surrogates in its texts replaced by U+FFFD; the same object if there are none.

    Looks into lists, tuples and mappings, keys included. Two surrogates that make a character become it.

    >>> ascii(plain_text({"a": ["x", chr(0xD83D) + "!"]}))
    "{'a': ['x', '\\\\ufffd!']}"
    """
    if isinstance(value, str):
        return value if value.isascii() or _is_plain(value) else _replaced(value)
    if isinstance(value, list | tuple):
        items = [plain_text(item) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same or type(value) not in (list, tuple) else type(value)(items)
    if isinstance(value, Mapping):
        pairs = [(plain_text(key), plain_text(item), key, item) for key, item in value.items()]
        if all(new_key is key and new is item for new_key, new, key, item in pairs):
            return value
        return {new_key: new for new_key, new, _, _ in pairs}
    return value


def _is_plain(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _replaced(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
