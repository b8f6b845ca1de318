"""What stops a push or a conversion, said so that its reader can mend it."""

from __future__ import annotations

from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)


class PushError(RuntimeError):
    """A run that must not be published as it is, or a Hub that does not take it; the message says why."""


class ConversionError(ValueError):
    """A checkpoint that cannot be converted, and why."""


def status_of(error: Exception) -> int | None:
    """HTTP status that the Hub answered with, or `None` when there was no answer."""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code
    return None


def explain(error: Exception, endpoint: str) -> str:
    """What a user can do about an error of the Hub client, in one sentence."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return "no Hub token; log in with `hf auth login`, or set HF_TOKEN"
    status = status_of(error)
    if status in (401, 403):
        return (
            f"the Hub refused the token (HTTP {status}): it is missing, expired, or may not write to this repository. "
            "Log in with `hf auth login` and a token with write access, or set HF_TOKEN"
        )
    if status == 429:
        return "the Hub is asked too much (HTTP 429); wait a few minutes and try again"
    if status is not None and status >= 500:
        return f"the Hub has trouble of its own (HTTP {status}); nothing is half published, so just try again"
    if status in (409, 412):
        return f"someone else changed the repository at the same time (HTTP {status}); look at it, and try again"
    if status is not None:
        return f"the Hub said no (HTTP {status}): {getattr(error, 'server_message', None) or error}"
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):
        return f"{endpoint} cannot be reached ({error}); check the connection and HF_ENDPOINT, and try again"
    return f"{endpoint} gave an answer that makes no sense, or a file went away: {error}"


def shortened(names: list[str], most: int = 12) -> str:
    """The first `most` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
