"""Build the evaluation set of the experiments from LibriSpeech: splits, word and phone times, query by example.

    python -m pip install pocketsphinx==5.1.1
    python scripts/make_evaluation_set.py --librispeech LibriSpeech --output_dir evaluation

LibriSpeech is the folder that `train-clean-5.tar.gz` (https://www.openslr.org/31) and `test-other.tar.gz`
(https://www.openslr.org/12) unpack to. The output folder gets

    LibriSpeech/{train-clean-5,heldout-clean-5,test-other-100}   links to the audio; transcripts
    alignments.tsv                                               word and phone times
    qbe/{queries,documents,targets}.tsv                          spoken words to find, and in what
    utterances.txt, evaluation_set.json                          what was chosen; how, and how much it is

The times are automatic: PocketSphinx's forced alignment, never checked by hand.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from tqdm import tqdm

from laser_hf.cli import run
from laser_hf.data import BadAudio, audio_seconds, decode_audio, find_audio_files, read_lines
from laser_hf.errors import LaserError
from laser_hf.records import provenance, write_json
from laser_hf.superb.discrimination import read_alignments
from laser_hf.superb.discrimination.tokens import COLUMNS
from laser_hf.superb.qbe.data import TABLES, read_tables

CLEAN, OTHER = "train-clean-5", "test-other"  # as LibriSpeech unpacks
TRAIN, HELDOUT, TEST = SPLITS = ("train-clean-5", "heldout-clean-5", "test-other-100")
HELDOUT_SPEAKERS = (32, 3664, 5789, 6848)  # two women, two men
TRAIN_SPEAKERS = (  # a fixed list; Mini-LibriSpeech may have more
    19, 118, 163, 332, 460, 669, 1088, 1737, 1867, 1898, 1970, 2416, 3242, 3526, 3947, 4640, 4680, 6272, 7312, 7367,
    7859, 8629,
)  # fmt: skip
TEST_SPEAKERS = TEST_UTTERANCES = 10  # the first by number, and of each the first by number
MIN_CHARACTERS, MIN_SECONDS = 5, 0.25  # of a word to search for
PHONES = "phones(name:start_centiseconds:duration_centiseconds)"


class Recording(NamedTuple):
    """An utterance: its file, and its words in small letters."""

    audio: Path
    words: list[str]


class Timed(NamedTuple):
    """A word or marker such as `<sil>`; times in centiseconds; phones as (name, start, duration)."""

    label: str
    start: int
    duration: int
    phones: list[tuple[str, int, int]]


class Aligner(Protocol):
    """What times words. `name` and `version` go into the record."""

    name: str
    version: str

    def knows(self, word: str) -> bool:
        """Whether the pronunciation of a word is known."""

    def align(self, samples: bytes, words: Sequence[str]) -> list[Timed] | None:
        """Times of known words in 16-bit samples at 16 kHz, or `None` where it finds none."""


class PocketSphinx:
    """Forced alignment by PocketSphinx 5 with the American English model and dictionary in its wheel, as they are set.

    The first pass finds words, pauses and pronunciations, the second the phones in them. The front-end is set back
    before every utterance, so that no utterance's times depend on another's.
    """

    name = "pocketsphinx"

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise LaserError(f"no aligner ({error}); install it: python -m pip install pocketsphinx==5.1.1") from error
        self.version = importlib.metadata.version("pocketsphinx")
        self._decoder = Decoder(lm=None, loglevel="FATAL")

    def knows(self, word: str) -> bool:
        """Whether the dictionary has the word."""
        return self._decoder.lookup_word(word) is not None

    def align(self, samples: bytes, words: Sequence[str]) -> list[Timed] | None:
        """See `Aligner`; `None` where a pass loses the path to the end."""
        decoder = self._decoder
        decoder.reinit_feat()
        decoder.set_align_text(" ".join(words))
        try:
            self._listen(samples)
            if decoder.hyp() is None:
                return None
            decoder.set_alignment()
            self._listen(samples)
        except RuntimeError:  # so PocketSphinx says that no path is left
            return None
        timed = []
        for word in decoder.get_alignment().words():
            phones = [(phone.name, phone.start, phone.duration) for phone in word]
            label = re.sub(r"\(\d+\)$", "", word.name)  # without the number of the pronunciation
            timed.append(Timed(label, word.start, word.duration, phones))
        return timed

    def _listen(self, samples: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(samples, full_utt=True)
        self._decoder.end_utt()


def numbers(utterance: str) -> tuple[int, ...]:
    """Speaker, chapter and number of `SPEAKER-CHAPTER-NUMBER`."""
    return tuple(map(int, utterance.split("-")))


def read_recordings(folder: Path) -> dict[str, Recording]:
    """The utterances below a folder of LibriSpeech by name; `LaserError` where text or audio is missing."""
    if not folder.is_dir():
        raise LaserError(f"no folder {folder}; --librispeech takes the folder to which LibriSpeech unpacks")
    audio = {path.stem: path for path in find_audio_files(folder)}
    found = {}
    for path in find_audio_files(folder, (".trans.txt",)):
        for place, line in read_lines(path):
            name, _, text = line.partition(" ")
            if not re.fullmatch(r"\d+-\d+-\d+", name) or not text.strip():
                raise LaserError(f"{place}: expected SPEAKER-CHAPTER-NUMBER and text, got {line[:40]!r}")
            if name not in audio:
                raise LaserError(f"{place}: there is no audio of {name}")
            found[name] = Recording(audio[name], text.lower().split())
    return found


def choose(
    clean: Mapping[str, Recording],
    other: Mapping[str, Recording],
    listed: Sequence[str] | None = None,
    heldout: Sequence[int] = HELDOUT_SPEAKERS,
) -> dict[str, list[str]]:
    """The utterances of each split, by number.

    Args:
        clean, other: the utterances of `train-clean-5` and `test-other`.
        listed: take these; by default all of `TRAIN_SPEAKERS` and `heldout`, and ten each of ten speakers of `other`.
        heldout: speakers of `clean` that are not for training.

    Raises:
        LaserError: a listed utterance or a speaker is missing.
    """
    if listed is None:
        speakers = {*TRAIN_SPEAKERS, *heldout}
        if missing := sorted(speakers - {numbers(name)[0] for name in clean}):
            raise LaserError(f"{CLEAN} has no speech of {', '.join(map(str, missing))}; is it Mini-LibriSpeech's?")
        first = sorted({numbers(name)[0] for name in other})[:TEST_SPEAKERS]
        if len(first) < TEST_SPEAKERS:
            raise LaserError(f"{OTHER} has {len(first)} speakers, expected {TEST_SPEAKERS} or more")
        listed = [name for name in clean if numbers(name)[0] in speakers]
        for speaker in first:
            listed += sorted((name for name in other if numbers(name)[0] == speaker), key=numbers)[:TEST_UTTERANCES]
    if unknown := [name for name in listed if name not in clean and name not in other]:
        raise LaserError(
            f"{len(unknown)} of the utterances are neither in {CLEAN} nor in {OTHER}, such as {unknown[0]}"
        )
    chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in sorted(set(listed), key=numbers):
        chosen[TEST if name in other else HELDOUT if numbers(name)[0] in heldout else TRAIN].append(name)
    if empty := [split for split, names in chosen.items() if not names]:
        raise LaserError(f"there is no utterance for {', '.join(empty)}")
    return chosen


def align(
    names: Sequence[str], recordings: Mapping[str, Recording], aligner: Aligner
) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of `alignments.tsv`, and how many utterances have times, or why not."""
    rows, aligned, lost, cut = [], 0, Counter(), []
    for name in tqdm(names, unit="utterance", desc="align"):
        audio, words = recordings[name]
        if not all(map(aligner.knows, words)):
            lost["a word is not in the dictionary"] += 1
            continue
        try:
            waveform = decode_audio(audio, min_seconds=0.0).waveform
        except BadAudio as error:
            raise LaserError(f"{audio}: {error}") from error
        samples = (waveform * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy().tobytes()
        timed = aligner.align(samples, words)
        if timed is None:
            lost["the aligner finds no path"] += 1
            continue
        aligned += 1
        if [word.label for word in timed if not word.label.startswith("<")] != words:
            cut.append(name)
        for word in timed:
            phones = " ".join(":".join(map(str, phone)) for phone in word.phones)
            rows.append([name, word.label, f"{word.start / 100:.2f}", f"{word.duration / 100:.2f}", phones])
    return rows, {"aligned": aligned, "without times": dict(lost), "words missing at the end": cut}


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a tab-separated table with a header line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]), encoding="utf-8")


def write_tree(root: Path, names: Sequence[str], recordings: Mapping[str, Recording]) -> dict[str, Path]:
    """Link audio and write transcripts as LibriSpeech has them; the links by utterance."""
    links = {}
    for name in names:
        speaker, chapter, _ = name.split("-")
        folder = root / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        links[name] = folder / recordings[name].audio.name
        links[name].symlink_to(recordings[name].audio.resolve())
        with (folder / f"{speaker}-{chapter}.trans.txt").open("a", encoding="utf-8") as file:
            file.write(f"{name} {' '.join(recordings[name].words).upper()}\n")
    return links


def write_qbe(folder: Path, links: Mapping[str, Path], recordings: Mapping[str, Recording], alignments: Path) -> None:
    """Write the query-by-example task on the utterances of `links`, which are all documents.

    A query is a word of at least `MIN_CHARACTERS` characters and `MIN_SECONDS` seconds that another speaker says in a
    document; documents of other speakers that have it in their transcript are its targets.
    """
    documents = sorted(links)
    where = {name: f"../{links[name].relative_to(folder.parent).as_posix()}" for name in documents}
    speaker = {name: name.split("-")[0] for name in documents}
    queries, targets = [], []
    words = read_alignments(alignments, utterances=documents).words
    for token in sorted(words, key=lambda token: (token.utterance, token.label, token.start)):
        said = [name for name in documents if token.label in recordings[name].words and speaker[name] != token.speaker]
        if len(token.label) >= MIN_CHARACTERS and token.duration >= MIN_SECONDS - 1e-9 and said:
            query, times = f"q{len(queries):04d}", (f"{token.start:.2f}", f"{token.duration:.2f}")
            queries.append([query, where[token.utterance], *times, token.speaker, token.label])
            targets += [[query, name] for name in said]
    columns = ("query", "audio", "start_seconds", "duration_seconds", "speaker", "word")
    write_table(folder / TABLES[0], columns, queries)
    write_table(folder / TABLES[1], ("document", "audio", "speaker"), [[n, where[n], speaker[n]] for n in documents])
    write_table(folder / TABLES[2], ("query", "document"), targets)


def build(options: argparse.Namespace, aligner: Aligner) -> dict[str, Any]:
    """Make the set in `options.output_dir`; what it has, for the record. Nothing is written before all is aligned."""
    clean, other = (read_recordings(options.librispeech / part) for part in (CLEAN, OTHER))
    listed = [line.strip() for _, line in read_lines(options.utterances)] if options.utterances else None
    chosen = choose(clean, other, listed, options.heldout_speakers)
    recordings, out, rows, about = {**clean, **other}, options.output_dir, [], {}
    for split, names in chosen.items():
        minutes = sum(audio_seconds(recordings[name].audio) or 0.0 for name in names) / 60
        speakers = len({numbers(name)[0] for name in names})
        about[split] = {"utterances": len(names), "speakers": speakers, "minutes": round(minutes, 1)}
        if split in options.align:
            found, counts = align(names, recordings, aligner)
            rows, about[split] = rows + found, about[split] | counts
    write_table(out / "alignments.tsv", (*COLUMNS, PHONES), sorted(rows, key=lambda row: row[0]))  # stable
    links = {split: write_tree(out / "LibriSpeech" / split, names, recordings) for split, names in chosen.items()}
    write_qbe(out / "qbe", links[HELDOUT] | links[TEST], recordings, out / "alignments.tsv")
    task = read_tables(out / "qbe")
    counts = {"queries": len(task.queries), "documents": len(task.documents), "targets": int(task.targets.sum())}
    (out / "utterances.txt").write_text("".join(f"{name}\n" for names in chosen.values() for name in names))
    times = {"aligner": aligner.name, "version": aligner.version, "checked by hand": False}
    return {"times": times, "splits": about, "qbe": counts | {"revision": task.revision()}}


def main(argv: Sequence[str] | None = None, aligner: Callable[[], Aligner] = PocketSphinx) -> None:
    """Build the set; tests give an aligner of their own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--librispeech", type=Path, default=Path("LibriSpeech"), help="as it unpacks (default: %(default)s)")
    add("--output_dir", type=Path, required=True, help="a new folder")
    add("--utterances", type=Path, metavar="FILE", help="take these, an id a line; default: the rule in the source")
    add("--heldout_speakers", type=int, nargs="+", default=HELDOUT_SPEAKERS, help=f"of {CLEAN} (default: %(default)s)")
    add("--align", nargs="+", choices=SPLITS, default=SPLITS, help="splits that get times (default: all)")
    options = parser.parse_args(argv)
    out = options.output_dir
    if out.exists() and any(out.iterdir()):
        raise LaserError(f"{out} is not empty; give a new --output_dir")
    record = {"what": "evaluation set (scripts/make_evaluation_set.py)", **build(options, aligner()), **provenance()}
    write_json(out / "evaluation_set.json", record)
    for name, counts in {**record["splits"], "qbe": record["qbe"]}.items():
        print(f"{name}: {counts}")


if __name__ == "__main__":
    run(main)
