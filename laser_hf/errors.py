"""The one base of all errors that a user can mend."""

from __future__ import annotations


class LaserError(ValueError):
    """Something is wrong with what the user gave: an option, a file, a model, a folder.

    The message says what was given, what was expected and how to mend it; `laser_hf.cli.run` prints it. Subclass it
    only where code has to catch that case alone.
    """
