"""The page of `laser-hf app` as a Space of the Hub beside a published model, with laser_hf itself among its files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..errors import LaserError
from .facts import card_file
from .upload import explained

GRADIO = "6.31.0"
"""The version that the Space runs."""
MARK = "laser_hf/app/page.py"
"""A Space with this file is one of ours, which the next push may replace."""
_PACKAGE = Path(__file__).resolve().parents[1]
_SHIPPED = "{laser_hf}/demo/encoder"


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
    """Create or replace the Space of the model's name in one commit; returns its address.

    `LaserError` if the Hub refuses it, or a Space of that name holds something else.
    """
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
