"""The shipped speech set: complete, decodable, of sound level, and consistent with its tables."""

import csv
import json
import re
from collections import defaultdict

import numpy as np
import pytest
import soundfile

from laser_hf.demo import ENCODER_DIR, SPEECH_DIR
from laser_hf.superb.discrimination import long_words, read_alignments

SAMPLE_RATE = 16000


def table(name: str) -> list[dict[str, str]]:
    with (SPEECH_DIR / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def audio() -> dict[str, np.ndarray]:
    """Every utterance, decoded."""
    decoded = {}
    for path in sorted(SPEECH_DIR.glob("*/*/*/*.opus")):
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == SAMPLE_RATE
        assert samples.ndim == 1
        decoded[path.stem] = samples
    return decoded


def transcripts() -> dict[str, tuple[str, str, str]]:
    """Utterance: (split, speaker, text)."""
    found = {}
    for path in sorted(SPEECH_DIR.glob("*/*/*/*.trans.txt")):
        split, speaker, chapter = path.relative_to(SPEECH_DIR).parts[:3]
        assert path.name == f"{speaker}-{chapter}.trans.txt"
        for line in path.read_text(encoding="utf-8").splitlines():
            utterance, text = line.split(" ", 1)
            assert (path.parent / f"{utterance}.opus").is_file()
            found[utterance] = (split, speaker, text)
    return found


def test_folders_are_inside_the_package():
    assert SPEECH_DIR.is_dir()
    assert ENCODER_DIR.parent == SPEECH_DIR.parent


@pytest.mark.slow
def test_every_file_is_listed_and_every_listed_file_exists(audio):
    listed = transcripts()
    assert set(listed) == set(audio) == {row["utterance"] for row in table("words.tsv")}
    speakers = {(row["split"], row["speaker"]) for row in table("voices.tsv")}
    assert speakers == {(split, speaker) for split, speaker, _ in listed.values()}


def test_names_cannot_be_taken_for_librispeech():
    for path in SPEECH_DIR.rglob("*"):
        assert not re.search(r"[0-9]+-[0-9]+-[0-9]{4}\.", path.name)


def test_speakers_variants_and_sentences_are_disjoint_between_splits():
    voices, texts = defaultdict(set), defaultdict(set)
    for row in table("voices.tsv"):
        voices[row["split"]] |= {row["speaker"], row["variant"]}
    for split, _, text in transcripts().values():
        texts[split].add(text)
    assert set(voices) == set(texts) == {"train", "heldout"}
    assert not voices["train"] & voices["heldout"]
    assert not texts["train"] & texts["heldout"]


def test_audio_is_neither_silent_nor_clipped_nor_long(audio):
    for name, samples in audio.items():
        assert np.isfinite(samples).all(), name
        level = 20 * np.log10(np.sqrt(np.mean(samples**2)))
        assert -30 < level < -24, name
        assert np.abs(samples).max() < 0.95, name
        assert 1.2 < len(samples) / SAMPLE_RATE < 4.5, name
        # No digital silence, and quiet edges: the first and the last 50 ms only have the room's noise.
        for edge in (samples[:800], samples[-800:]):
            assert 0 < np.sqrt(np.mean(edge**2)) < 0.01, name
        active = np.sqrt(np.mean(samples[: len(samples) // 320 * 320].reshape(-1, 320) ** 2, axis=1)) > 0.005
        assert active.mean() > 0.5, name


def test_word_times_lie_inside_their_file_and_follow_each_other(audio):
    texts = transcripts()
    words = defaultdict(list)
    for row in table("words.tsv"):
        words[row["utterance"]].append(row)
        assert texts[row["utterance"]][:2] == (row["split"], row["speaker"])
    for utterance, rows in words.items():
        assert " ".join(row["word"] for row in rows).upper() == texts[utterance][2]
        starts = np.array([float(row["start_seconds"]) for row in rows])
        ends = starts + [float(row["duration_seconds"]) for row in rows]
        assert starts[0] == pytest.approx(0.10, abs=0.001)
        np.testing.assert_allclose(starts[1:], ends[:-1], atol=0.0002)
        assert (ends > starts).all()
        assert len(audio[utterance]) / SAMPLE_RATE == pytest.approx(ends[-1] + 0.12, abs=0.001)


def test_speech_is_where_the_word_times_say(audio):
    """The level rises at the first word and falls after the last one, so no delay was added."""
    rises, falls = [], []
    rows = defaultdict(list)
    for row in table("words.tsv"):
        rows[row["utterance"]].append(row)
    for utterance, words in rows.items():
        samples = audio[utterance]
        loud = np.flatnonzero(np.abs(samples) > 0.01) / SAMPLE_RATE
        rises.append(loud[0] - float(words[0]["start_seconds"]))
        end = float(words[-1]["start_seconds"]) + float(words[-1]["duration_seconds"])
        falls.append(loud[-1] - end)
    # A closure or a weak fricative can precede the first loud sample; the last sound decays.
    assert -0.02 < np.median(rises) < 0.06
    assert -0.06 < np.median(falls) < 0.02


def test_words_of_different_speakers_can_be_compared():
    for split, speakers in (("train", 16), ("heldout", 6)):
        words = long_words(read_alignments(SPEECH_DIR / "words.tsv", split).words, 4)
        assert len({word.speaker for word in words}) == speakers
        sayings = defaultdict(set)
        for word in words:
            sayings[word.label].add(word.utterance.split("-")[2])
        # Most word tokens belong to words that more than one sentence has.
        shared = sum(len(sayings[word.label]) > 1 for word in words)
        assert shared > 0.7 * len(words)


def test_summary_and_readme_tell_the_true_figures(audio):
    summary = json.loads((SPEECH_DIR / "summary.json").read_text(encoding="utf-8"))
    readme = (SPEECH_DIR / "README.md").read_text(encoding="utf-8")
    texts = transcripts()
    assert summary["sample_rate"] == SAMPLE_RATE
    assert summary["espeak_ng_version"] in readme
    for split, figures in summary["splits"].items():
        names = [name for name, row in texts.items() if row[0] == split]
        assert figures["utterances"] == len(names)
        assert figures["speakers"] == len({texts[name][1] for name in names})
        assert figures["sentences"] == len({texts[name][2] for name in names})
        minutes = sum(len(audio[name]) for name in names) / SAMPLE_RATE / 60
        assert figures["minutes"] == pytest.approx(minutes, abs=0.006)
        assert figures["audio_bytes"] == sum(p.stat().st_size for p in (SPEECH_DIR / split).rglob("*.opus"))
        row = f"| {split} | {figures['speakers']} | {figures['sentences']} | {figures['utterances']} |"
        assert f"{row} {figures['minutes']:.2f} |" in readme


def test_set_is_small():
    assert sum(path.stat().st_size for path in SPEECH_DIR.rglob("*") if path.is_file()) <= 10_000_000
