"""The error that a user can mend."""


class SearchError(ValueError):
    """A search that cannot start or go on as asked; the message says how to mend it."""
