"""Values that a foreign function gets for itself: what it writes into them, nobody else sees."""

from __future__ import annotations

from typing import Any


def own_copy(value: Any) -> Any:
    """A value whose containers are its own, while what is in them is shared.

    Dicts, lists, tuples and sets are copied at every depth. Arrays of numpy become read-only views, so that writing
    into one raises. Everything else, such as a picture or a tensor, is the very object: media are not copied.

    >>> row = {"boxes": [[1, 2], [3, 4]]}
    >>> copy = own_copy(row)
    >>> copy["boxes"][0].clear()
    >>> row
    {'boxes': [[1, 2], [3, 4]]}
    """
    kind = type(value)
    if kind is str or kind is int or kind is float or value is None:
        return value
    if kind is dict:
        return {key: own_copy(item) for key, item in value.items()}
    if kind is list:
        return [own_copy(item) for item in value]
    if kind is tuple:
        return tuple([own_copy(item) for item in value])
    if kind is set:
        return set(value)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        view = value.view()
        view.flags.writeable = False
        return view
    return value
