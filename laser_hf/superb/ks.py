"""`laser-hf superb ks`: keyword spotting, SUPERB's recipe on Speech Commands 0.01, or any folder of words.

Files are divided by the hash of their speaker, as the data set's own README has it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np

from ..data import decode_audio, find_audio_files
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..plugins import Option
from .features import add_arguments as add_feature_arguments
from .qbe.data import GAIN_DB
from .sid import classify

HELP = "keyword spotting: accuracy of a linear head on the mean of the frames of short words"
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, NOISE = "_unknown_", "_silence_", "_background_noise_"
CROPS = 100
"""Seconds of each recording of noise, evenly spread, that are silence in train and dev; S3PRL draws new ones."""
OPTIONS = (
    Option("--per_class", 0, "recordings of each class and split at most, spread evenly; 0 for all", low=0),
    Option("--max_steps", 200_000, "updates", low=1),
    Option("--eval_steps", 4_000, "updates between two looks at dev", low=1),
    Option("--learning_rate", 1e-4, "of Adam, constant", above=0),
)
SUPERB = {option.name[2:]: option.default for option in OPTIONS} | {"keywords": list(KEYWORDS)}
SUPERB |= {"train": 51_088 + 6 * CROPS, "dev": 6_798 + 6 * CROPS, "test": 3_081}


def role_of(name: str) -> str:
    """The split of a file by the hash of its speaker, which `_nohash_` ends: 80 % train, 10 % dev, 10 % test."""
    speaker = re.sub(r"_nohash_.*$", "", name)
    share = int(sha1(speaker.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
    return "dev" if share < 10 else "test" if share < 20 else "train"


def noise_crops(path: Path) -> list[dict[str, Any]]:
    """`CROPS` seconds of a recording, evenly spread over it; the whole of one that is shorter than a second."""
    samples = decode_audio(str(path)).waveform.numpy()
    starts = np.linspace(0, max(0, len(samples) - SAMPLE_RATE), CROPS).astype(int)
    return [{"array": samples[start : start + SAMPLE_RATE], "sampling_rate": SAMPLE_RATE} for start in starts]


def read_words(data: Path, test: Path | None, keywords: Sequence[str], per_class: int) -> tuple[dict, list[str]]:
    """Audio and class of every recording of train, dev and test, and the names of the classes.

    Args:
        data: a folder with a folder for each word, and perhaps one of noise.
        test: one with a folder for each class to test on; without, the tenth of `data` that its hash keeps for this.
        keywords: words with a class of their own.
        per_class: as in `OPTIONS`.

    Raises:
        LaserError: a keyword has no folder, a folder of `test` no class, or a split no recording.
    """
    words = sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    if missing := [word for word in keywords if not (data / word).is_dir()]:
        raise LaserError(f"{data} has no folder {missing[0]!r}; expected one for each of {', '.join(keywords)}")
    classes = [*keywords, *[UNKNOWN] * (len(words) > len(keywords)), *[SILENCE] * (data / NOISE).is_dir()]
    found: dict[str, dict[str, list]] = {role: {name: [] for name in classes} for role in ("train", "dev", "test")}
    for folder in words:
        label = folder.name if folder.name in keywords else UNKNOWN
        for path in find_audio_files(folder):
            if test is None or role_of(path.name) != "test":
                found[role_of(path.name)][label].append(str(path))
    if SILENCE in classes:
        crops = [crop for path in find_audio_files(data / NOISE) for crop in noise_crops(path)]
        for role in ("train", "dev", "test")[: 3 if test is None else 2]:
            found[role][SILENCE] = crops
    for folder in sorted(path for path in test.iterdir() if path.is_dir()) if test else ():
        if folder.name not in classes:
            raise LaserError(f"{folder} is none of the classes: {', '.join(classes)}")
        found["test"][folder.name] = [str(path) for path in find_audio_files(folder)]
    items = {}
    for role, by_class in found.items():
        picked = {}
        for name, every in by_class.items():
            places = np.linspace(0, len(every) - 1, min(len(every), per_class or len(every))).astype(int)
            picked[name] = [every[place] for place in places]
        items[role] = [(one, classes.index(name)) for name, chosen in picked.items() for one in chosen]
        if not items[role]:
            raise LaserError(f"{test if test and role == 'test' else data} has no recording for {role}")
    return items, classes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_feature_arguments(parser, layer=False)
    text = "a folder of each word, and _background_noise_ for silence: speech_commands_v0.01, or your own"
    parser.add_argument("--data", type=Path, required=True, help=text)
    text = "a folder of each class to test on: speech_commands_test_set_v0.01; default: a tenth of --data, by speaker"
    parser.add_argument("--test_data", type=Path, help=text)
    text = "words with a class of their own; all others are one"
    parser.add_argument("--keywords", nargs="+", default=list(KEYWORDS), metavar="WORD", help=text)
    for option in OPTIONS:
        parser.add_argument(option.name, type=option, default=option.default, help=option.help)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and test the heads, write `results.json` and `accuracy.png`, return the record."""
    for path in filter(None, (arguments.data, arguments.test_data)):
        if not path.is_dir():
            raise LaserError(f"{path} is no folder; expected a folder of each word, as Speech Commands has it")
    items, names = read_words(arguments.data, arguments.test_data, arguments.keywords, arguments.per_class)
    recipe = {option.name[2:]: getattr(arguments, option.name[2:]) for option in OPTIONS}
    recipe |= {"keywords": arguments.keywords, "gain_db": GAIN_DB}
    about = {"source": str(arguments.data), "test_source": arguments.test_data and str(arguments.test_data)}
    options = {"gain": 10 ** (GAIN_DB / 20), "silence": names.index(SILENCE) if SILENCE in names else -1}
    task = "ks", "keyword spotting"
    return classify(task, arguments, items, names, recipe, about | {"split": "test"}, SUPERB, **options)
