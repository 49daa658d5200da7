"""Patches of attributes that several threads share: replica threads take turns inside one step or layer.

That of one object lasts as long as it has users, and that of a class stays.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


class _Patch:
    """Replacement of an attribute, with the number of its users and what to leave behind."""

    def __init__(self, replacement: Any, previous: dict[str, Any]):
        self.replacement = replacement
        self.previous = previous
        """The attribute as the object itself had it; empty where it is of the object's class."""
        self.users = 0


_patches: dict[tuple[int, str], _Patch] = {}
"""Patches by id of the object and name of the attribute. The id stays the object's, because the users hold it."""
_lock = threading.Lock()


def patch_for_good(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Replace a method of a class, once. It stays replaced.

    Args:
      owner: the class.
      name: of the method.
      make: from the method to what takes its place.
    """
    with _lock:
        original = getattr(owner, name)
        if getattr(original, "_tapescope", False):
            return
        hook: Any = make(original)
        hook.__wrapped__ = original
        hook._tapescope = True
        setattr(owner, name, hook)


@contextlib.contextmanager
def shared_patch(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute of one object in this context.

    The first user puts the replacement there, and the last one takes it away, unless the program has set another value
    meanwhile. It goes around `__setattr__`, by which Keras would track the value.

    Args:
      owner: the object.
      name: of the attribute.
      make: from the attribute to what takes its place.
    """
    attributes = vars(owner)
    key = id(owner), name
    with _lock:
        patch = _patches.get(key)
        if patch is None or attributes.get(name) is not patch.replacement:
            previous = {name: attributes[name]} if name in attributes else {}
            patch = _patches[key] = _Patch(make(getattr(owner, name)), previous)
            attributes[name] = patch.replacement
        patch.users += 1
    try:
        yield
    finally:
        with _lock:
            patch.users -= 1
            if not patch.users:
                if attributes.get(name) is patch.replacement:
                    del attributes[name]
                    attributes.update(patch.previous)
                if _patches.get(key) is patch:
                    del _patches[key]
