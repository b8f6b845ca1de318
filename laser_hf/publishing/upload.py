"""Send a repository to the Hub: one commit, whole or not at all, and a tag that marks it; a Space beside it.

After a failure the same command goes on: what has arrived is not sent again, and a commit that was made is recognised.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub import errors as hub
from huggingface_hub.utils.sha import git_hash

from ..errors import LaserError
from ..records import read_json
from .export import RECORDS
from .facts import card_file

if TYPE_CHECKING:
    from .repository import Bundle

EVALUATION_SCRIPTS = ("eval_ctc.py", "eval_requirements.txt")
"""Published with every model, for people who do not have laser_hf."""
REPLACED = ("plots/*.png", "results/*.json", "results*.json", ".eval_results/*.yaml", *RECORDS, *EVALUATION_SCRIPTS)
"""Files of an earlier push that the next one replaces or removes."""
GRADIO = "6.31.0"
"""The version that the Space runs."""
MARK = "laser_hf/app/page.py"
"""A Space with this file is one of ours, which the next push may replace."""
_PACKAGE = Path(__file__).resolve().parents[1]
_SHIPPED = "{laser_hf}/demo/encoder"
_VERSION = re.compile(r"v(\d+)\.(\d+)")


@dataclass(frozen=True)
class Target:
    """The repository before the push; `commit` and `files` are those of the main branch if the branch is missing."""

    exists: bool
    branch_exists: bool = False
    private: bool | None = None
    commit: str | None = None
    files: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    base_model: str | None = None


@dataclass(frozen=True)
class Published:
    """The repository after the push; `changed` says whether a new commit was needed."""

    commit: str
    url: str
    tag: str | None = None
    changed: bool = True


@contextmanager
def explained(endpoint: str) -> Iterator[None]:
    """Turn errors of the Hub's client into `LaserError`s that say what to do."""
    try:
        yield
    except LaserError:
        raise
    except (RuntimeError, hub.HTTPError, OSError, ValueError) as error:
        # The client wraps what stops the transfer of a file in a RuntimeError.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        raise LaserError(_explain(cause, endpoint)) from error


_TOKEN = (
    "the Hub refused the token: it is missing, expired, or may not write to this repository. Log in with `hf auth "
    "login` and a token with write access, or set HF_TOKEN"
)
_CHANGED = "somebody changed the repository at the same time; look at it and try again"
_BUSY = "the Hub gets too many requests; wait a few minutes and give the same command again"
_BROKEN = "the Hub does not work; nothing is half published, give the same command again"
_REASONS = {401: _TOKEN, 403: _TOKEN, 409: _CHANGED, 412: _CHANGED, 429: _BUSY}


def _explain(error: BaseException, endpoint: str) -> str:
    if isinstance(error, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it"
    if isinstance(error, hub.LocalTokenNotFoundError):
        return _TOKEN
    if status := getattr(getattr(error, "response", None), "status_code", None):
        said = f"the Hub refused the request: {getattr(error, 'server_message', None) or error}"
        return f"{_BROKEN if status >= 500 else _REASONS.get(status, said)} (HTTP {status})"
    if isinstance(error, hub.HTTPError | ConnectionError | TimeoutError):
        what = f"{endpoint} cannot be reached, or the connection broke ({error})"
        return f"{what}; check the connection and HF_ENDPOINT, and give the same command again"
    return f"{endpoint} gave an unexpected answer, or a file went away: {error}"


def inspect_target(api: HfApi, repo_id: str, revision: str) -> Target:
    """The repository at a branch or commit; `LaserError` if the Hub does not answer."""
    with explained(api.endpoint):
        try:
            info, branch_exists = api.model_info(repo_id, revision=revision), True
        except hub.RevisionNotFoundError:
            info, branch_exists = api.model_info(repo_id), False
        except hub.RepositoryNotFoundError as error:
            if error.response.status_code == 401:  # which the Hub says to those without a valid token
                raise
            return Target(exists=False)
        files, base = tuple(sibling.rfilename for sibling in info.siblings or ()), None
        if record := next((name for name in RECORDS if name in files), None):
            path, base = api.hf_hub_download(repo_id, record, revision=info.sha), "something unreadable"
            with suppress(LaserError, KeyError, TypeError):
                base = read_json(path)["base_model"]["name"]
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
        return Target(True, branch_exists, info.private, info.sha, files, tags, base)


def check_target(request: argparse.Namespace, target: Target, base_model: str | None) -> None:
    """`LaserError` if the push would overwrite what is not this project's, or the repository does not fit it."""
    repo_id, other = request.repo_id, "choose another --repo_id"
    foreign = ", ".join([name for name in target.files if name not in (".gitattributes", "README.md")][:5])
    marked = target.tags.get(request.tag or "", target.commit)
    if foreign and not {*RECORDS} & {*target.files}:
        raise LaserError(f"{repo_id} holds something that is no export of laser_hf ({foreign}); {other}")
    if target.base_model not in (None, base_model):
        raise LaserError(f"{repo_id} holds a model made from {target.base_model}, not from {base_model}; {other}")
    if request.private and target.private is False:
        raise LaserError(f"{repo_id} is public, and --private only applies to a new repository; leave it out")
    if request.create_pr and not target.exists:
        raise LaserError(f"--create_pr: there is no {repo_id} to open a pull request against")
    if marked != target.commit:
        raise LaserError(f"{repo_id} already has a tag {request.tag}, of commit {marked}; choose another --tag")


def fetch(api: HfApi, repo_id: str, revision: str, folder: Path) -> Path:
    """Download a published model to `folder`; `LaserError` if there is none, or the Hub does not answer."""
    with explained(api.endpoint):
        if not inspect_target(api, repo_id, revision).branch_exists:
            raise LaserError(f"there is no {repo_id} at {revision} to add results to; publish a RUN_DIR first")
        return Path(api.snapshot_download(repo_id, revision=revision, local_dir=folder))


def add_to_collection(api: HfApi, repo_id: str, title: str, private: bool) -> str:
    """Put a model into the collection `title` of its owner, made if there is none; returns its address."""
    with explained(api.endpoint):
        owner = repo_id.split("/")[0]
        made = api.create_collection(title, namespace=owner, private=private, exists_ok=True)
        api.add_collection_item(made.slug, repo_id, "model", exists_ok=True)
        return f"{api.endpoint}/collections/{made.slug}"


def stale_files(target: Target, files: Mapping[str, object]) -> list[str]:
    """Files of an earlier push that this one removes."""
    return [n for n in target.files if n not in files and any(fnmatch(n, pattern) for pattern in REPLACED)]


def choose_tag(request: argparse.Namespace, tags: Mapping[str, str], commit: str) -> str | None:
    """The tag asked for, or the next version (v1.0, v1.1, ...) of the main branch; one that marks `commit` stays."""
    if request.tag or request.create_pr or request.branch != constants.DEFAULT_REVISION:
        return request.tag
    versions = {tuple(map(int, m.groups())): name for name in tags if (m := _VERSION.fullmatch(name))}
    if own := [version for version in versions if tags[versions[version]] == commit]:
        return versions[max(own)]
    major, minor = max(versions, default=(1, -1))
    return f"v{major}.{minor + 1}"


def _find_pull_request(api: HfApi, repo_id: str, added: Sequence[CommitOperationAdd]) -> Published | None:
    """An open pull request that holds these files: the answer to it was lost, or the command is given again."""
    for one in api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="open"):
        stored = api.get_paths_info(repo_id, [file.path_in_repo for file in added], revision=one.git_reference)
        theirs = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in stored}
        hashes = [(f.upload_info.sha256.hex(), git_hash(Path(f.path_or_fileobj).read_bytes())) for f in added]
        if all(theirs.get(file.path_in_repo) in ours for file, ours in zip(added, hashes, strict=True)):
            return Published(str(api.model_info(repo_id, revision=one.git_reference).sha), one.url, changed=False)
    return None


def publish(api: HfApi, request: argparse.Namespace, bundle: Bundle, target: Target) -> Published:
    """Commit the bundle's files, remove stale ones, tag the commit; `LaserError` if the Hub refuses it.

    The large files go first and stay invisible until the one commit that names them all. The commit is refused if the
    branch is no longer at `target.commit`, so it neither overwrites another one nor is made twice.
    """
    repo_id, branch = request.repo_id, request.branch
    with explained(api.endpoint):
        if not target.exists:
            # None leaves the choice to the organisation's default.
            api.create_repo(repo_id, private=request.private or None, exist_ok=True)
        if not target.branch_exists:
            if branch != constants.DEFAULT_REVISION:
                api.create_branch(repo_id, branch=branch, exist_ok=True)
            target = inspect_target(api, repo_id, branch)
            check_target(request, target, bundle.record["base_model"]["name"])
        added = [CommitOperationAdd(name, path) for name, path in bundle.files.items()]
        if request.create_pr and (found := _find_pull_request(api, repo_id, added)):
            return found
        removed = [CommitOperationDelete(name) for name in stale_files(target, bundle.files)]
        how = {"create_pr": True} if request.create_pr else {"revision": branch}
        how |= {"commit_message": request.commit_message or bundle.message, "parent_commit": target.commit}
        commit = api.create_commit(repo_id, [*added, *removed], **how)
    if commit.pr_url:
        return Published(commit.oid, commit.pr_url)
    try:
        with explained(api.endpoint):
            tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
            tag = choose_tag(request, tags, commit.oid)
            if tags.get(tag, commit.oid) != commit.oid:
                raise LaserError(f"the tag {tag} marks commit {tags[tag]} already; choose another --tag")
            if tag and tag not in tags:
                api.create_tag(repo_id, tag=tag, revision=commit.oid, exist_ok=True)
    except LaserError as error:
        raise LaserError(f"published as commit {commit.oid}, but not tagged: {error}") from error
    return Published(commit.oid, f"{api.endpoint}/{repo_id}/tree/{branch}", tag, commit.oid != target.commit)


def space_files(repo_id: str, record: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of the Space of the model `repo_id` by path.

    `record` is that of its training; a base model that is a folder of the trainer's machine is left out. Where laser_hf
    is not installed, so that its requirements are not known, it is a `LaserError`.
    """
    base, shipped = record["base_model"], record["recipe"]["model"]["model_name_or_path"] == _SHIPPED
    models = [*([_SHIPPED] if shipped else [] if base["local"] else [base["name"]]), repo_id]
    try:
        needed = [one for one in requires("laser-hf") or () if "extra ==" not in one]
    except PackageNotFoundError as error:
        raise LaserError("--space needs an installed laser_hf: pip install -e . in the checkout") from error
    on_hub = "\n".join(f"- {name}" for name in models if name != _SHIPPED)
    how = {"name": repo_id.split("/")[1], "gradio": GRADIO, "models": on_hub, "repo_id": repo_id}
    files = {
        "README.md": card_file("space_readme.txt").format(**how).encode(),
        "app.py": card_file("space_app.txt").format(repo_id=repo_id, models=models).encode(),
        "requirements.txt": "\n".join([*needed, f"gradio=={GRADIO}", ""]).encode(),
    }
    for path in sorted(_PACKAGE.rglob("*")):
        name = path.relative_to(_PACKAGE.parent).as_posix()
        # The page searches in the held-out voices alone.
        if path.is_file() and "__pycache__" not in name and not name.startswith("laser_hf/demo/speech/train/"):
            files[name] = path.read_bytes()
    return files


def publish_space(api: HfApi, repo_id: str, files: Mapping[str, bytes], private: bool = False) -> str:
    """Create or replace the Space of the model's name, unless it holds something else; returns its address."""
    space: dict[str, Any] = {"repo_id": repo_id, "repo_type": "space"}
    with explained(api.endpoint):
        api.create_repo(**space, space_sdk="gradio", private=private or None, exist_ok=True)
        there = set(api.list_repo_files(**space))
        foreign = sorted(there - {".gitattributes", "README.md"})
        if foreign and MARK not in there:
            raise LaserError(f"the Space {repo_id} holds something else ({', '.join(foreign[:5])}); it stays as it is")
        stale = [CommitOperationDelete(name) for name in foreign if name.startswith("laser_hf/") and name not in files]
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(**space, operations=[*added, *stale], commit_message=f"The page of {repo_id}")
    return f"{api.endpoint}/spaces/{repo_id}"
