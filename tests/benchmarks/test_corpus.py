"""The benchmark of a large corpus: its tree, and that folder and manifest are the same speech."""

from __future__ import annotations

import sys

from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # the benchmarks belong to the repository, not to the package

import datasets

from benchmarks import corpus
from laser_hf.data import PairDataset, PairTransform, SpeedPitch, listing, load_speech


def test_tree_and_manifest_are_the_same_speech(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(listing, "ROWS", 20)
    assert corpus.build_tree(tmp_path, 100) == 3
    folder, manifest = load_speech(tmp_path / "tree", "train"), load_speech(corpus.make_manifest(tmp_path))
    assert len(folder) == 100
    assert folder[99]["text"] == "THE WORDS OF AN UTTERANCE ARE ABOUT AS MANY AS THESE"
    digests = {PairDataset(one, PairTransform(SpeedPitch())).fingerprint() for one in (folder, manifest)}
    assert len(digests) == 1
    assert corpus.found(tmp_path / "tree")["seconds"] > 0
