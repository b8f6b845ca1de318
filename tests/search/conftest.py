"""Cheap searches, and speech with words and a query-by-example task in small."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def cheap() -> ModuleType:
    """The module `cheap_search`, which other tests also run as a script."""
    spec = importlib.util.spec_from_file_location("cheap_search", Path(__file__).with_name("cheap_search.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def words_of_tree(small_tree, tmp_path_factory) -> Path:
    """Made-up word times for `small_tree`."""
    vocabulary = ["river", "garden", "letter"]
    rows = ["utterance\tword\tstart_seconds\tduration_seconds"]
    for file in sorted(small_tree.rglob("*.flac")):
        take = int(file.stem[-1])
        rows += [f"{file.stem}\t{vocabulary[(take + place) % 3]}\t{0.02 + 0.2 * place}\t0.2" for place in range(2)]
    path = tmp_path_factory.mktemp("words") / "words.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def qbe_tables(tmp_path_factory) -> Path:
    """Two speakers, three recordings; a and b hold the same sweep, q0."""
    folder = tmp_path_factory.mktemp("qbe")
    sweep = np.sin(np.cumsum(np.linspace(0.1, 0.6, 6000))) * 0.3
    for seed, name in enumerate("abc"):
        samples = np.random.default_rng(seed).normal(0, 0.05, 16_000)
        if name in "ab":
            samples[5000:11000] += sweep
        soundfile.write(folder / f"{name}.wav", samples, 16_000)
    (folder / "queries.tsv").write_text(
        "query\taudio\tstart_seconds\tduration_seconds\tspeaker\nq0\ta.wav\t0.3125\t0.375\t1\n"
    )
    (folder / "documents.tsv").write_text("document\taudio\tspeaker\na\ta.wav\t1\nb\tb.wav\t2\nc\tc.wav\t2\n")
    (folder / "targets.tsv").write_text("query\tdocument\nq0\ta\nq0\tb\n")
    return folder
