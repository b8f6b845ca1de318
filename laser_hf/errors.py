"""The one base of all errors that a user can mend."""

from __future__ import annotations


class LaserError(ValueError):
    """The user can mend this: the message, which `cli.run` prints, says what was given, what is expected and how."""
