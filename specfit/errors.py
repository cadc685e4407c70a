"""The one exception for a caller's mistake. It costs no other import, so that the command line can know it."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """What the caller gave cannot be used; the message says what came, what was expected and what to do."""
