#!/usr/bin/env python3
"""Synthesise the small multi-speaker speech set that the demo trains and scores on.

The set is spoken by espeak-ng through its C library, because the library's event callback gives the
exact sample at which every word and phoneme starts; the ``espeak-ng`` command cannot report that.
Every choice (sentences, voices, noise) is fixed, so two runs with the same espeak-ng version give the
same audio; only the random serial number inside each Ogg file differs.

Written below ``--output_dir``:

* ``<split>/<speaker>/<chapter>/<speaker>-<chapter>-<sentence>.opus``: 16 kHz mono, Ogg Opus
* ``<split>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt``: ``ID TEXT`` lines, as in LibriSpeech
* ``words.tsv``: start and duration of every word, in seconds of the written file
* ``voices.tsv``: the espeak-ng settings of every speaker
* ``summary.json``: counts, minutes, bytes and the espeak-ng version

espeak-ng is only needed to make the set again, never to use it. On Debian and Ubuntu:
``apt-get install espeak-ng``; on macOS: ``brew install espeak-ng``. The set takes a few minutes to make.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import ctypes.util
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

SPEECH_DIR = Path(__file__).resolve().parents[1] / "laser_hf" / "demo" / "speech"
SAMPLE_RATE = 16000
SPEECH_DBFS = -26.0  # RMS over the words, re full scale
NOISE_DBFS = -62.0  # 36 dB below the speech: a quiet room
LEAD_SECONDS, TAIL_SECONDS = 0.10, 0.12  # kept before the first word and after the last one
COMPRESSION_LEVEL = 0.93  # libsndfile: 0 is the highest bit rate, 1 the lowest; this is about 25 kbit/s
SEED = 20240


@dataclass(frozen=True)
class Speaker:
    """One synthetic speaker: an espeak-ng accent and voice variant with its own rate and pitch."""

    name: str
    split: str
    voice: str  # "gmw/en" is British English; "en-gb" cannot be combined with a variant in espeak-ng 1.51
    variant: str
    rate: int  # words per minute
    pitch: int  # 0..100, 50 is the variant's own pitch
    pitch_range: int  # 0..100, 50 is the variant's own range

    @property
    def chapter(self) -> str:
        return "s1"


# No variant is used by speakers of both splits, so that the held-out voices are new ones.
SPEAKERS = tuple(
    Speaker(*row)
    for row in (
        ("v01", "train", "en-us", "m1", 165, 50, 50),
        ("v02", "train", "gmw/en", "f1", 150, 52, 60),
        ("v03", "train", "en-gb-scotland", "m2", 175, 42, 45),
        ("v04", "train", "en-us", "f2", 180, 55, 65),
        ("v05", "train", "en-gb-x-rp", "m3", 145, 38, 40),
        ("v06", "train", "en-029", "f3", 160, 48, 55),
        ("v07", "train", "en-us-nyc", "m4", 190, 58, 70),
        ("v08", "train", "gmw/en", "klatt2", 155, 46, 50),
        ("v09", "train", "en-gb-x-gbclan", "f1", 170, 66, 45),
        ("v10", "train", "en-us", "m6", 140, 40, 60),
        ("v11", "train", "en-gb-scotland", "f3", 185, 62, 50),
        ("v12", "train", "en-gb-x-gbcwmd", "m1", 155, 34, 65),
        ("v13", "train", "en-us-nyc", "linda", 170, 45, 40),
        ("v14", "train", "en-gb-x-rp", "f2", 135, 44, 50),
        ("v15", "train", "en-029", "m2", 195, 54, 55),
        ("v16", "train", "en-us", "klatt3", 150, 64, 45),
        ("v17", "heldout", "en-us", "m7", 160, 47, 55),
        ("v18", "heldout", "gmw/en", "f5", 170, 53, 50),
        ("v19", "heldout", "en-gb-scotland", "m5", 150, 44, 60),
        ("v20", "heldout", "en-us-nyc", "f4", 185, 58, 45),
        ("v21", "heldout", "en-gb-x-gbclan", "klatt4", 140, 50, 50),
        ("v22", "heldout", "en-us", "Andrea", 175, 44, 40),
    )
)

# ---------------------------------------------------------------------------------------------------
# espeak-ng through ctypes. Names and values are those of its public header speak_lib.h.

AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_PHONEME_EVENTS, INITIALIZE_DONT_EXIT = 0x0001, 0x8000
CHARS_UTF8 = 1
POS_CHARACTER = 1
EVENT_LIST_TERMINATED, EVENT_WORD, EVENT_PHONEME = 0, 1, 7
PARAMETER_RATE, PARAMETER_VOLUME, PARAMETER_PITCH, PARAMETER_RANGE = 1, 2, 3, 4
VOLUME = 50  # at the library's default of 100 some of the klatt voices clip


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # counted from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Mark:
    """A word or phoneme event: ``kind`` is "word" or "phoneme", ``sample`` its place in the audio."""

    kind: str
    sample: int
    text_start: int  # index of the first character, counted from 0 (words only)
    length: int  # characters (words only)
    phoneme: str


class Espeak:
    """The espeak-ng library in synchronous mode."""

    def __init__(self, library: str | None = None) -> None:
        name = library or ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self._lib = ctypes.CDLL(name)
        except OSError as error:
            raise SystemExit(
                f"Cannot load the espeak-ng library ({name}): {error}\n"
                "Install it with `apt-get install espeak-ng` (Debian, Ubuntu) or `brew install espeak-ng` "
                "(macOS), or give its path with --library. The set itself is shipped with laser_hf; "
                "espeak-ng is only needed to make it again."
            ) from error
        # The library's noise generator is the C library's rand().
        self._libc = ctypes.CDLL(None)
        self._lib.espeak_Info.restype = ctypes.c_char_p
        self.version = self._lib.espeak_Info(None).decode()
        options = INITIALIZE_PHONEME_EVENTS | INITIALIZE_DONT_EXIT
        self.sample_rate = self._lib.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 500, None, options)
        if self.sample_rate <= 0:
            raise SystemExit("espeak-ng did not start; its data files (espeak-ng-data) may be missing.")
        self._audio: list[np.ndarray] = []
        self._marks: list[Mark] = []
        self._callback = _Callback(self._on_audio)  # kept: ctypes does not hold a reference
        self._lib.espeak_SetSynthCallback(self._callback)

    def _on_audio(self, samples, count: int, events) -> int:  # type: ignore[no-untyped-def]
        if samples and count > 0:
            self._audio.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        index = 0
        while events[index].type != EVENT_LIST_TERMINATED:
            event = events[index]
            if event.type == EVENT_WORD and event.length > 0:  # a trailing word event has length 0
                self._marks.append(Mark("word", event.sample, event.text_position - 1, event.length, ""))
            elif event.type == EVENT_PHONEME:
                self._marks.append(Mark("phoneme", event.sample, -1, 0, event.id.string.decode()))
            index += 1
        return 0

    def speak(self, text: str, speaker: Speaker) -> tuple[np.ndarray, list[Mark]]:
        """Speak ``text``: int16 samples (at ``self.sample_rate``) and its word and phoneme marks."""
        name = f"{speaker.voice}+{speaker.variant}"
        if self._lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise SystemExit(f"This espeak-ng ({self.version}) has no voice {name}.")
        for parameter, value in (
            (PARAMETER_RATE, speaker.rate),
            (PARAMETER_VOLUME, VOLUME),
            (PARAMETER_PITCH, speaker.pitch),
            (PARAMETER_RANGE, speaker.pitch_range),
        ):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._audio.clear()
        self._marks.clear()
        self._libc.srand(SEED)
        data = text.encode()
        status = self._lib.espeak_Synth(data, len(data) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        if status != 0 or not self._audio:
            raise SystemExit(f"espeak-ng failed (status {status}) on {name}: {text}")
        return np.concatenate(self._audio), list(self._marks)


# ---------------------------------------------------------------------------------------------------
# Word times


def word_times(text: str, marks: list[Mark], sample_rate: int) -> list[tuple[str, float, float]]:
    """Start and end of every word of ``text``, in seconds of espeak-ng's own audio.

    A word starts at its word event and ends where the next word or the final pause starts, so the
    silent closure of an initial stop belongs to the word. Two habits of espeak-ng are corrected:

    * Before a word that starts with a vowel, the event can come together with the last consonant of
      the previous word; the vowel's own event is the true start.
    * Pairs such as "on the" are one dictionary entry with one event; "the" starts at its D phoneme (d in
      the Caribbean accent).
    """
    tokens = [(match.start(), match.group()) for match in re.finditer(r"\S+", text)]
    events = {mark.text_start: index for index, mark in enumerate(marks) if mark.kind == "word"}
    starts: list[int] = []
    for position, (character, token) in enumerate(tokens):
        if character in events:
            index = events[character]
            start = marks[index].sample
            following = next(mark for mark in marks[index + 1 :] if mark.kind == "phoneme")
            early = index > 0 and marks[index - 1].kind == "phoneme" and marks[index - 1].sample == start
            if early and following.phoneme[0] in "aeiouAEIOUV03@&":
                start = following.sample
        else:
            if token.lower() != "the" or position == 0:
                raise SystemExit(f"espeak-ng gave no event for the word {token!r} of {text!r}.")
            index = events[tokens[position - 1][0]]
            onsets = []
            for mark in marks[index + 1 :]:
                if mark.kind == "word":
                    break
                if mark.phoneme in ("D", "d"):
                    onsets.append(mark.sample)
            if not onsets:
                raise SystemExit(f"Cannot place {token!r} after {tokens[position - 1][1]!r} in {text!r}.")
            start = onsets[-1]
        starts.append(start)
    last = events[max(events)]
    pauses = [m.sample for m in marks[last:] if m.kind == "phoneme" and m.phoneme.startswith("_")]
    ends = [*starts[1:], pauses[0]]
    if any(end <= start for start, end in zip(starts, ends, strict=True)):
        raise SystemExit(f"Word times of {text!r} are not increasing: {starts}, {ends}")
    return [
        (token, start / sample_rate, end / sample_rate)
        for (_, token), start, end in zip(tokens, starts, ends, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------
# Audio


def room_noise(count: int, seed: tuple[int, ...]) -> np.ndarray:
    """Low-level noise of ``count`` samples at ``NOISE_DBFS``, falling by about 3 dB per octave."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequency, 50.0)), n=count)
    return noise * (10 ** (NOISE_DBFS / 20) / np.sqrt(np.mean(noise**2)))


def finish_audio(
    samples: np.ndarray, sample_rate: int, words: list[tuple[str, float, float]], seed: tuple[int, ...]
) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Resample to 16 kHz, cut the edges, set the level and add noise; word times follow the cut."""
    wave = torch.from_numpy(samples.astype(np.float32) / 32768)
    # torchaudio's windowed-sinc filter has zero delay, so word times stay as they are.
    audio = torchaudio.functional.resample(wave, sample_rate, SAMPLE_RATE).double().numpy()
    first, last = words[0][1], words[-1][2]
    cut = round((first - LEAD_SECONDS) * SAMPLE_RATE)
    stop = round((last + TAIL_SECONDS) * SAMPLE_RATE)
    # espeak-ng starts at once: the lead is padded, and both edges are then filled by the noise.
    padded = np.pad(audio, (max(0, -cut), max(0, stop - len(audio))))
    shift = max(0, -cut)
    audio = padded[cut + shift : stop + shift]
    offset = cut / SAMPLE_RATE
    words = [(word, start - offset, end - offset) for word, start, end in words]
    spoken = audio[round(words[0][1] * SAMPLE_RATE) : round(words[-1][2] * SAMPLE_RATE)]
    audio = audio * (10 ** (SPEECH_DBFS / 20) / np.sqrt(np.mean(spoken**2)))
    audio = audio + room_noise(len(audio), seed)
    peak = np.abs(audio).max()
    if peak >= 0.9:
        raise SystemExit(f"The audio peaks at {peak:.2f} of full scale: a voice with pops?")
    return audio.astype(np.float32), words


# ---------------------------------------------------------------------------------------------------


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """``(split, sentence)`` rows of the sentence list."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            split, sentence = line.split("\t")
            rows.append((split, sentence))
    return rows


def make_set(espeak: Espeak, sentences_file: Path, output_dir: Path) -> dict[str, object]:
    """Write the whole set below ``output_dir`` and return the summary."""
    sentences = read_sentences(sentences_file)
    word_rows: list[tuple[str, ...]] = []
    splits = {}
    for split in ("train", "heldout"):
        shutil.rmtree(output_dir / split, ignore_errors=True)
        splits[split] = {"speakers": 0, "sentences": 0, "utterances": 0, "minutes": 0.0, "audio_bytes": 0}
        splits[split]["sentences"] = sum(row[0] == split for row in sentences)
    for speaker_number, speaker in enumerate(SPEAKERS, start=1):
        figures = splits[speaker.split]
        figures["speakers"] += 1
        folder = output_dir / speaker.split / speaker.name / speaker.chapter
        folder.mkdir(parents=True)
        transcripts = []
        for number, (split, sentence) in enumerate(sentences, start=1):
            if split != speaker.split:
                continue
            samples, marks = espeak.speak(sentence, speaker)
            words = word_times(sentence, marks, espeak.sample_rate)
            audio, words = finish_audio(samples, espeak.sample_rate, words, (SEED, speaker_number, number))
            utterance = f"{speaker.name}-{speaker.chapter}-{number:04d}"
            path = folder / f"{utterance}.opus"
            soundfile.write(path, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION_LEVEL)
            transcripts.append(f"{utterance} {sentence.upper()}\n")
            for word, start, end in words:
                word_rows.append((utterance, split, speaker.name, word.lower(), f"{start:.4f}", f"{end - start:.4f}"))
            figures["utterances"] += 1
            figures["minutes"] += len(audio) / SAMPLE_RATE / 60
            figures["audio_bytes"] += path.stat().st_size
        name = f"{speaker.name}-{speaker.chapter}.trans.txt"
        (folder / name).write_text("".join(transcripts), encoding="utf-8")
    write_table(
        output_dir / "words.tsv",
        ("utterance", "split", "speaker", "word", "start_seconds", "duration_seconds"),
        word_rows,
    )
    write_table(
        output_dir / "voices.tsv",
        ("speaker", "split", "voice", "variant", "rate", "pitch", "range"),
        [(s.name, s.split, s.voice, s.variant, s.rate, s.pitch, s.pitch_range) for s in SPEAKERS],
    )
    for figures in splits.values():
        figures["minutes"] = round(figures["minutes"], 2)
    summary = {"espeak_ng_version": espeak.version, "sample_rate": SAMPLE_RATE, "splits": splits}
    (output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def write_table(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, default=SPEECH_DIR, help="where to write the set (default: in the package)"
    )
    parser.add_argument("--sentences", type=Path, default=SPEECH_DIR / "sentences.txt", help="split<TAB>sentence lines")
    parser.add_argument("--library", help="path of libespeak-ng, when it is not where the system looks")
    options = parser.parse_args(arguments)
    summary = make_set(Espeak(options.library), options.sentences, options.output_dir)
    json.dump(summary, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
