"""From recordings to scores, for all layers and evaluation sets of a run; a cache holds what can be taken up again."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...records import read_json, write_json
from .data import QbeData, Utterance
from .frontends import Frontend
from .search import Search, load_search, search
from .store import FrameStore, encode, sample_counts


def open_cache(
    arguments: argparse.Namespace,
    model: dict[str, Any],
    utterances: Sequence[Utterance],
    gain: float,
    layers: list[int],
) -> Path:
    """Folder of what can be taken up again: named after all that decides its content, others are deleted."""
    files = {}
    for utterance in utterances:
        if utterance.audio not in files:
            found = utterance.audio.stat() if utterance.audio.is_file() else None
            files[utterance.audio] = [str(utterance.audio), found and found.st_size, found and found.st_mtime_ns]
    content = {
        "model": [model["model"], model["weights_sha256"], arguments.frames_per_second, arguments.deltas],
        "files": list(files.values()),
        "utterances": [[str(u.audio), u.start, u.duration] for u in utterances],
        "settings": [gain, arguments.batch_seconds, arguments.cache_gib, layers],
    }
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    folder = arguments.output_dir / "cache" / key
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other)
    return folder


def layer_groups(layers: list[int], bytes_a_layer: int, cache_gib: float, folder: Path) -> list[list[int]]:
    """Layers whose frames are on disk at the same time, as many as `cache_gib` holds and one at least.

    Raises:
        OSError: the disk has no room for a group.
    """
    size = max(1, int(cache_gib * 2**30 // max(1, bytes_a_layer)))
    groups = [layers[first : first + size] for first in range(0, len(layers), size)]
    needed, free = len(groups[0]) * bytes_a_layer, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the frames of {len(groups[0])} layers take {needed / 2**30:.1f} GiB, and {folder} has "
            f"{free / 2**30:.1f} GiB free: name fewer layers with --layer, lower --cache_gib, or use another disk"
        )
    return groups


def search_all(
    arguments: argparse.Namespace,
    frontend: Frontend,
    layers: list[int],
    sets: list[QbeData],
    utterances: list[Utterance],
    cache: Path,
    device: torch.device,
) -> tuple[dict[tuple[int, int], Search], dict[Utterance, tuple[str, str]]]:
    """Scores by (set, layer), and what was skipped and why."""
    frames = sum(frontend.frame_count(samples) for samples in sample_counts(utterances))
    groups = layer_groups(layers, frames * frontend.dim * 4, arguments.cache_gib, cache)
    place = {utterance: index for index, utterance in enumerate(utterances)}
    noted = cache / "skipped.json"
    found: dict[tuple[int, int], Search] = {}
    for group in groups:
        paths = {(s, n): cache / f"{s}_{arguments.distance}_layer{n:02d}.npz" for n in group for s in range(len(sets))}
        done = {key: load_search(path) for key, path in paths.items()}
        if noted.exists() and None not in done.values():
            found |= done
            continue
        folder = cache / f"frames_{group[0]:02d}_{group[-1]:02d}"
        store = FrameStore(folder, group, frontend.dim)
        encode(frontend, utterances, store, sets[0].gain, arguments.batch_seconds)
        write_json(noted, {"skipped": [[index, *why] for index, why in store.skipped.items()]})
        for (number, layer), path in paths.items():
            one = sets[number]
            found[number, layer] = search(
                store,
                layer,
                [place[query] for query in one.queries],
                [place[document] for document in one.documents],
                path,
                distance=arguments.distance,
                device=device,
                block_documents=arguments.block_documents,
                name=f"{one.split}, layer {layer}",
            )
        if len(groups) > 1:
            shutil.rmtree(folder)  # the next group needs the room
    return found, {utterances[index]: (kind, why) for index, kind, why in read_json(noted)["skipped"]}
