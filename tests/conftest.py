"""Shared pieces of the tests: tiny models, made-up speech, and where real speech lies if it is there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from pathlib import Path

# Nothing may be fetched, and two test processes on two cores must not fight for threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest

# torch and transformers are imported in functions: the process that only hands out tests needs neither.

with contextlib.suppress(ImportError):  # a GPU machine may lack it
    import hypothesis

    # No time limit for an example: the machine may be loaded. The same examples in every run.
    hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_SPEECH = REPOSITORY.parent / "shared" / "data" / "LibriSpeech"


def pytest_collection_modifyitems(config, items):
    import torch

    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    slow_first(items, getattr(config, "workerinput", {}).get("workercount", 1))


def slow_first(items: list[pytest.Item], workers: int) -> None:
    """Sort tests so that the share of each worker begins with files of slow tests: none of them ends alone.

    Files stay whole, because their tests share fixtures.
    """
    slow = {item.path for item in items if "slow" in item.keywords}
    counts = Counter(item.path for item in items)
    sizes, shares = [0] * workers, {}
    for number, path in enumerate(sorted(counts, key=lambda path: (path not in slow, -counts[path]))):
        shares[path] = number % workers if path in slow else sizes.index(min(sizes))
        sizes[shares[path]] += counts[path]
    items.sort(key=lambda item: (shares[item.path], item.path not in slow))


@pytest.fixture(autouse=True)
def nothing_left_to_the_next_test():
    """Threads change the last digits of sums; figures left by a picture that failed would be counted by the next."""
    import torch

    yield
    torch.set_num_threads(1)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def shared_speech() -> Path:
    """Real LibriSpeech speech beside the repository."""
    if not SHARED_SPEECH.is_dir():
        pytest.skip(f"no real speech at {SHARED_SPEECH}")
    return SHARED_SPEECH


_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 4,
}
_KINDS = {"hubert": "Hubert", "wavlm": "WavLM", "wav2vec2": "Wav2Vec2", "data2vec-audio": "Data2VecAudio"}


def make_model(kind: str = "hubert", norm: str = "group", stable: bool = False, seed: int = 0, **extra):
    """A random encoder of 3 layers of 32 with the standard front-end's kernels and strides."""
    import torch
    import transformers

    config_class, model_class = (getattr(transformers, _KINDS[kind] + what) for what in ("Config", "Model"))
    values = {**_TINY, **extra}
    if kind != "data2vec-audio":
        values.update(feat_extract_norm=norm, do_stable_layer_norm=stable, num_conv_pos_embeddings=16)
    torch.manual_seed(seed)
    return model_class(config_class(**values)).eval()


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """Folder of a tiny random HuBERT, as `save_pretrained` leaves it."""
    import transformers

    folder = tmp_path_factory.mktemp("tiny-hubert")
    make_model().save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    return folder


def make_waveform(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Something with the time structure of speech: a few tones that come and go, and a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.01 * generator.standard_normal(len(time))
    for _ in range(6):
        pitch, phase, rhythm = generator.uniform(100, 2000), generator.uniform(0, 6), generator.uniform(1, 4)
        wave += 0.08 * np.sin(2 * np.pi * pitch * time + phase) * (np.sin(2 * np.pi * rhythm * time + phase) > 0)
    return wave.astype(np.float32)


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory) -> Path:
    """A LibriSpeech-like tree: 3 speakers x 6 utterances of 0.5 to 0.9 seconds."""
    soundfile = pytest.importorskip("soundfile")
    root = tmp_path_factory.mktemp("speech")
    for speaker in range(1, 4):
        chapter = root / "train" / str(speaker) / "10"
        chapter.mkdir(parents=True)
        lines = []
        for utterance in range(6):
            name = f"{speaker}-10-{utterance:04d}"
            wave = make_waveform(0.5 + 0.4 * ((speaker * 7 + utterance * 3) % 10) / 10, seed=speaker * 10 + utterance)
            soundfile.write(chapter / f"{name}.flac", wave, 16_000)
            lines.append(f"{name} SOME WORDS")
        (chapter / f"{speaker}-10.trans.txt").write_text("\n".join(lines) + "\n")
    return root
