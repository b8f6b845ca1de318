"""Everything that is sent to the Hub: one commit, whole or not at all, and a tag for it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..records import read_json
from .collect import RECORD_NAME, REPLACED
from .errors import PushError, explain, status_of

ATTEMPTS = 4
"""Times that a request is made before giving up; the Hub's client repeats single transfers on its own besides."""
LONGEST_WAIT = 300
"""Seconds; a Hub that asks to be left alone for longer is left alone."""
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_VERSION = re.compile(r"v(\d+)\.(\d+)")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Destination:
    """Where to publish: `tag=None` asks for the next version, on the main branch only."""

    repo_id: str
    branch: str = constants.DEFAULT_REVISION
    private: bool = False
    create_pr: bool = False
    tag: str | None = None

    def check(self) -> None:
        """Raise `PushError` for what no Hub would take."""
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise PushError(f"--repo_id {self.repo_id}: {error}") from error
        if self.tag is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.tag):
            raise PushError(f"--tag {self.tag!r} is no tag name; something like v1.0")
        if self.create_pr and self.branch != constants.DEFAULT_REVISION:
            raise PushError("--create_pr opens a pull request against the main branch; leave --revision out")
        if self.create_pr and self.tag:
            raise PushError("--tag marks what is published, and a pull request is not yet; tag it after merging")


@dataclass(frozen=True)
class Target:
    """The repository as it is before the push."""

    exists: bool
    branch_exists: bool = False
    private: bool | None = None
    commit: str | None = None
    files: tuple[str, ...] = ()
    tags: Mapping[str, str] | None = None
    base_model: str | None = None


@dataclass(frozen=True)
class Published:
    """Where it is now."""

    commit: str
    url: str
    tag: str | None = None
    changed: bool = True


def retrying(call: Callable[[], _Result]) -> _Result:
    """`call()`, repeated while the Hub is busy or the connection breaks; the last error is raised.

    Waits as long as the Hub's Retry-After says, else 1, 2, 4 seconds. `call` must do no harm when done twice.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except OfflineModeIsEnabled:
            raise
        except (HTTPError, ConnectionError, TimeoutError) as error:
            status, wait = status_of(error), 2.0 ** (attempt - 1)
            if status is not None:
                asked = error.response.headers.get("Retry-After", "")
                wait = float(asked) if asked.isdigit() else wait
                if status not in _PASSING or wait > LONGEST_WAIT:
                    raise
            if attempt == ATTEMPTS:
                raise
            what = f"HTTP {status}" if status else f"no connection ({type(error).__name__})"
            print(f"{what}; trying again in {wait:g} s ({attempt} of {ATTEMPTS - 1})", file=sys.stderr)
            time.sleep(wait)
    raise AssertionError("unreachable")


def inspect_target(api: HfApi, repo_id: str, revision: str) -> Target:
    """What the repository holds at a branch or commit, or on its main branch if it lacks that branch."""
    try:
        try:
            info, branch_exists = retrying(lambda: api.model_info(repo_id, revision=revision)), True
        except RevisionNotFoundError:
            info, branch_exists = retrying(lambda: api.model_info(repo_id)), False
    except RepositoryNotFoundError as error:
        # The Hub also says 401 of repositories that do not exist, but to those without a valid token.
        if status_of(error) == 401:
            raise
        return Target(exists=False)
    files = tuple(sibling.rfilename for sibling in info.siblings or ())
    refs = retrying(lambda: api.list_repo_refs(repo_id))
    base = None
    if RECORD_NAME in files:
        try:
            record = read_json(retrying(lambda: api.hf_hub_download(repo_id, RECORD_NAME, revision=info.sha)))
            base = record["base_model"]["name"]
        except (ValueError, KeyError, TypeError):
            base = "something unreadable"
    return Target(
        exists=True,
        branch_exists=branch_exists,
        private=info.private,
        commit=info.sha,
        files=files,
        tags={tag.name: tag.target_commit for tag in refs.tags},
        base_model=base,
    )


def check_target(destination: Destination, target: Target, record: Mapping[str, Any]) -> None:
    """Raise `PushError` where publishing would touch what is not this project's, or not what was asked for."""
    foreign = [name for name in target.files if name not in (".gitattributes", "README.md")]
    if foreign and RECORD_NAME not in target.files:
        raise PushError(
            f"{destination.repo_id} already holds something that is no LASER export ({', '.join(foreign[:5])}); choose "
            "another --repo_id"
        )
    if target.base_model not in (None, record["base_model"]["name"]):
        raise PushError(
            f"{destination.repo_id} already holds a model made from {target.base_model}, this one was made from "
            f"{record['base_model']['name']}; choose another --repo_id"
        )
    if destination.private and target.private is False:
        raise PushError(
            f"{destination.repo_id} exists and is public, and --private only says how to create one; make it private "
            "in its settings, or leave --private out"
        )
    if destination.create_pr and not target.exists:
        raise PushError(f"--create_pr: there is no {destination.repo_id} to open a pull request against")
    marked = (target.tags or {}).get(destination.tag or "")
    if marked and marked != target.commit:
        raise PushError(
            f"{destination.repo_id} already has a tag {destination.tag}, of commit {marked}; a published version does "
            "not move, so choose another --tag"
        )


def stale_files(target: Target, files: Sequence[str] | Mapping[str, Path]) -> list[str]:
    """Files of an earlier push that this one replaces by nothing."""
    return [n for n in target.files if n not in files and any(fnmatch(n, pattern) for pattern in REPLACED)]


def choose_tag(destination: Destination, tags: Mapping[str, str], commit: str) -> str | None:
    """The tag asked for, or the next version `v1.0`, `v1.1`, ...; one that marks `commit` already stays.

    `None` for pull requests, and for other branches unless one was asked for.
    """
    if destination.tag:
        return destination.tag
    if destination.create_pr or destination.branch != constants.DEFAULT_REVISION:
        return None
    versions = {tuple(map(int, m.groups())): name for name in tags if (m := _VERSION.fullmatch(name))}
    for version in sorted(versions, reverse=True):
        if tags[versions[version]] == commit:
            return versions[version]
    if not versions:
        return "v1.0"
    major, minor = max(versions)
    return f"v{major}.{minor + 1}"


def publish(
    api: HfApi, destination: Destination, files: Mapping[str, Path], record: Mapping[str, Any], message: str
) -> Published:
    """Commit `files`, remove what an earlier push left, tag the commit.

    The large files go first and stay invisible until the one commit that names them all, so that an interrupted push
    changes nothing and its repetition sends only what is missing.

    Args:
        api: of the Hub.
        destination: checked by `check_target`.
        files: by their path in the repository.
        record: `laser_config.json`.
        message: of the commit.

    Raises:
        PushError: the Hub does not take it; the message says why and what to do.
    """
    repo_id, branch = destination.repo_id, destination.branch
    try:
        target = inspect_target(api, repo_id, branch)
        if not target.exists:
            # None leaves the choice to the organisation's own default.
            private = True if destination.private else None
            retrying(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        if not target.branch_exists and branch != constants.DEFAULT_REVISION:
            retrying(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True))
        commit, before = _commit(api, destination, files, record, message)
    except (HTTPError, OSError, ValueError) as error:
        raise PushError(explain(error, api.endpoint)) from error
    if commit.pr_url:
        return Published(commit.oid, commit.pr_url)
    try:
        after = inspect_target(api, repo_id, commit.oid)
        lost = sorted(set(files) - set(after.files))
        if lost:
            raise PushError(f"the Hub took commit {commit.oid}, but it lacks {', '.join(lost)}; push again")
        tag = _tag(api, destination, after.tags or {}, commit.oid)
    except (HTTPError, OSError, ValueError) as error:
        reason = explain(error, api.endpoint)
        raise PushError(
            f"published as commit {commit.oid}, but not tagged: {reason}. The same command tags it"
        ) from error
    return Published(commit.oid, f"{api.endpoint}/{repo_id}/tree/{branch}", tag, commit.oid != before)


def _commit(api: HfApi, destination: Destination, files, record, message: str):
    """The commit and the one it was made on. Repeated from the start when the branch moved in between."""
    for attempt in range(1, ATTEMPTS + 1):
        target = inspect_target(api, destination.repo_id, destination.branch)
        check_target(destination, target, record)
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in stale_files(target, files)]
        try:
            commit = api.create_commit(
                destination.repo_id,
                operations,
                commit_message=message,
                revision=None if destination.create_pr else destination.branch,
                create_pr=destination.create_pr,
                # An answer may be lost after the commit was made: with its parent named it cannot be made twice.
                parent_commit=target.commit,
            )
        except (HTTPError, ConnectionError, TimeoutError) as error:
            status = status_of(error)
            # A pull request whose answer was lost may be there already; another one would be a second.
            unknown = status is None and destination.create_pr
            if attempt == ATTEMPTS or unknown or status not in (None, 409, 412, *_PASSING):
                raise
            print(f"the upload was interrupted ({status or type(error).__name__}); going on", file=sys.stderr)
            time.sleep(2.0 ** (attempt - 1))
        else:
            return commit, target.commit
    raise AssertionError("unreachable")


def _tag(api: HfApi, destination: Destination, tags: Mapping[str, str], commit: str) -> str | None:
    tag = choose_tag(destination, tags, commit)
    if tag is None or tags.get(tag) == commit:
        return tag
    if tag in tags:
        raise PushError(
            f"published as commit {commit}, but the tag {tag} marks commit {tags[tag]} already; run the same command "
            "with another --tag"
        )
    retrying(lambda: api.create_tag(destination.repo_id, tag=tag, revision=commit, exist_ok=True))
    return tag
