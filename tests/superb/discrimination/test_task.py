"""Selection of aligned speech, measuring, one command with its record, and real speech where it is there."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import torch

from laser_hf.demo import ENCODER_DIR
from laser_hf.encoders import load_encoder
from laser_hf.errors import LaserError
from laser_hf.records import read_record
from laser_hf.superb.__main__ import main
from laser_hf.superb.discrimination.speech import DiscriminationSettings, load_aligned_speech, repeated_words
from laser_hf.superb.discrimination.task import measure
from laser_hf.superb.features import EncoderFeatures, load_features

HEADER = "utterance\tword\tstart_seconds\tduration_seconds\tphones(name:start:duration)\n"
SETTINGS = DiscriminationSettings(min_letters=4, min_seconds=0.1)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, small_tree):
    """`small_tree` with made-up times: three words and six phones an utterance, and some bad rows."""
    vocabulary = ["river", "garden", "letter", "winter", "doctor"]
    phones = ["AA", "IY", "S", "T", "N", "M"]
    rows = []
    for file in sorted(small_tree.rglob("*.flac")):
        take = int(file.stem[-1])
        for place in range(3):
            parts = [f"{phones[(take + place + k) % 6]}:{10 + 13 * place + 6 * k}:6" for k in range(2)]
            word = vocabulary[(take + place) % 5]
            rows.append(f"{file.stem}\t{word}\t{0.1 + 0.13 * place:.2f}\t0.12\t{' '.join(parts)}")
    first = sorted(small_tree.rglob("*.flac"))[0].stem
    rows += [f"{first}\tdistant\t7.0\t0.3\tD:700:10", f"{first}\tbroken\tx\t0.3\t", "9-9-0009\tlost\t0.1\t0.3\tL:10:5"]
    path = tmp_path_factory.mktemp("aligned") / "alignments.tsv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_what_cannot_be_used_is_counted_and_named(aligned, small_tree, caplog):
    speech = load_aligned_speech(small_tree, aligned, settings=SETTINGS)
    reasons = {reason: entry["count"] for reason, entry in speech.reasons.items()}
    assert reasons == {
        "words without valid times": 1,
        "aligned utterances without audio": 1,
        "tokens beyond the end of their audio": 2,
    }
    assert speech.reasons["aligned utterances without audio"]["first"] == ["9-9-0009"]
    assert "left out" in caplog.text
    assert len(speech.waveforms) == 18
    assert len(speech.words) == 54


def test_selection_is_small_spread_and_the_same_every_time(aligned, small_tree):
    settings = replace(SETTINGS, max_utterances=6, max_words=10, phones_per_speaker=1, max_speakers=2)
    speech = load_aligned_speech(small_tree, aligned, settings=settings)
    assert sorted(name.split("-")[0] for name in speech.waveforms) == ["1", "1", "2", "2", "3", "3"]
    assert len(speech.words) <= 10
    assert len({phone.speaker for phone in speech.phones}) == 2
    again = load_aligned_speech(small_tree, aligned, ["train"], settings)
    assert (again.words, again.phones) == (speech.words, speech.phones)
    other = load_aligned_speech(small_tree, aligned, settings=replace(settings, seed=1))
    assert other.words != speech.words


def test_utterances_with_words_of_several_speakers_come_first(small_tree, tmp_path):
    """Of each speaker one utterance has a word that others say too; the others have words of the speaker alone."""
    rows = []
    for file in sorted(small_tree.rglob("*.flac")):
        speaker, utterance = int(file.stem[0]), int(file.stem[-1])
        word = "shared" if utterance == 2 + speaker else "lonely" + "abc"[speaker - 1]
        rows.append(f"{file.stem}\t{word}\t0.10\t0.20\t")
    path = tmp_path / "alignments.tsv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    for seed in range(3):
        speech = load_aligned_speech(small_tree, path, settings=replace(SETTINGS, max_utterances=3, seed=seed))
        assert sorted(speech.waveforms) == ["1-10-0003", "2-10-0004", "3-10-0005"]


def test_words_of_several_speakers_come_first(aligned, small_tree):
    words = load_aligned_speech(small_tree, aligned, settings=SETTINGS).words
    lonely = [replace(words[0], label=f"only{index}") for index in range(20)]
    kept = repeated_words([*lonely, *words], 30)
    assert len(kept) == 30
    assert not any(word.label.startswith("only") for word in kept)


def test_the_encoder_stays_in_training_and_numbers_repeat(aligned, small_tree, tiny_encoder):
    encoder = load_encoder(str(tiny_encoder)).train()
    speech = load_aligned_speech(small_tree, aligned, settings=SETTINGS)
    state = torch.get_rng_state()
    (first,), (second,) = (measure(EncoderFeatures(encoder), speech, settings=SETTINGS) for _ in range(2))
    assert first == second
    assert 0 < first.summary()["word_ap_across"] < 1
    assert encoder.training
    assert torch.equal(state, torch.get_rng_state())


def test_layers_are_measured_one_by_one(aligned, small_tree, tiny_encoder):
    features = load_features(str(tiny_encoder))
    speech = load_aligned_speech(small_tree, aligned, settings=SETTINGS)
    reports = measure(features, speech, [0, 2, 3], SETTINGS)
    assert reports[2] == measure(features, speech, [-1], SETTINGS)[0]
    assert len({report.summary()["word_ap_across"] for report in reports}) == 3


def test_the_command_leaves_its_record_and_plot(aligned, small_tree, tiny_encoder, tmp_path, capsys):
    common = ["--data", str(small_tree), "--alignments", str(aligned), "--min_letters", "4", "--min_seconds", "0.1"]
    main(
        [
            "discrimination",
            "--model",
            str(tiny_encoder),
            *common,
            "--layer",
            "all",
            "--output_dir",
            str(tmp_path / "all"),
        ]
    )
    record = read_record(tmp_path / "all" / "results.json")
    assert (record["task"], record["protocol"], record["metric"]) == ("discrimination", "quick", "word_ap_across")
    assert {metric["layer"] for metric in record["metrics"]} == {0, 1, 2, 3}
    assert record["layer"] == 3
    by_name = {m["metric"]: m for m in record["metrics"] if m["layer"] == 3}
    assert set(by_name) == {
        "word_ap_across", "word_ap", "abx_across", "abx_within", "frame_cosine", "effective_rank",
    }  # fmt: skip
    assert by_name["word_ap_across"]["same_pairs"] > 10
    assert by_name["abx_across"]["triples"] > 100
    assert record["data"]["skipped"]["tokens beyond the end of their audio"]["count"] == 2
    assert record["weights_sha256"]
    assert (tmp_path / "all" / "discrimination.png").stat().st_size > 10_000
    assert "layer 3: word_ap_across" in capsys.readouterr().out
    one = ["--output_dir", str(tmp_path / "one"), "--overwrite_output_dir"]
    for model in ("mfcc", f"random:{tiny_encoder}"):
        main(["discrimination", "--model", model, *common, *one])
        record = read_record(tmp_path / "one" / "results.json")
        assert math.isfinite(record["value"])
        assert record["seed"] == 0
    capsys.readouterr()
    with pytest.raises(LaserError, match="holds a finished run"):
        main(["discrimination", "--model", "mfcc", *common, *one[:2]])
    main(["discrimination", "--model", "mfcc", *common, "--max_words", "20", *one])
    assert "same-word pairs of different speakers, so word_ap_across is a rough number" in capsys.readouterr().out


def test_speech_without_comparable_words_still_gives_the_rest(aligned, small_tree, tiny_encoder, tmp_path):
    lines = [line for line in aligned.read_text().splitlines()[1:] if line.startswith("1-")]
    path = tmp_path / "one-speaker.tsv"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    speech = load_aligned_speech(small_tree, path, settings=SETTINGS)
    (report,) = measure(load_features(str(tiny_encoder)), speech, settings=SETTINGS)
    assert set(report.summary()) == {"word_ap", "abx_within", "frame_cosine", "effective_rank"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_utterances", 0),
        ("min_letters", -1),
        ("min_seconds", math.nan),
        ("min_seconds", math.inf),
        ("max_pairs", 1),
        ("phones_per_speaker", -3),
        ("seed", -1),
    ],
)
def test_settings_have_ranges(name, value):
    with pytest.raises(LaserError, match=f"--{name} must be at least .*, got {value}"):
        DiscriminationSettings(**{name: value})


def test_nothing_to_compare_is_no_success(small_tree, tiny_encoder, tmp_path):
    """One word and no phones: the statistics of the frames alone are no result of this task."""
    path = tmp_path / "one.tsv"
    path.write_text(HEADER + "1-10-0000\triver\t0.10\t0.30\t\n")
    out = tmp_path / "out"
    common = ["--data", str(small_tree), "--alignments", str(path), "--min_seconds", "0.1", "--output_dir", str(out)]
    with pytest.raises(LaserError, match=r"no words and no phones .* can be compared \(1 words and 0 phones"):
        main(["discrimination", "--model", str(tiny_encoder), *common])
    assert not (out / "results.json").exists()


def test_two_files_of_one_name_are_refused(aligned, small_tree, tmp_path):
    for split in ("a", "b"):
        shutil.copytree(small_tree, tmp_path / "tree" / split)
    with pytest.raises(LaserError, match="have the name of one utterance; name one --split"):
        load_aligned_speech(tmp_path / "tree", aligned, settings=SETTINGS)
    assert load_aligned_speech(tmp_path / "tree", aligned, ["a"], SETTINGS).words


def test_places_without_usable_speech_are_refused(aligned, small_tree, tmp_path):
    with pytest.raises(LaserError, match="no folder"):
        load_aligned_speech(small_tree, aligned, ["test"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LaserError, match="none of the 19 utterances"):
        load_aligned_speech(tmp_path / "empty", aligned)
    path = tmp_path / "words.tsv"
    path.write_text(HEADER + "1-10-0000\tgo\t0.1\t0.1\t\n")
    with pytest.raises(LaserError, match="no phone and no word of 5 letters"):
        load_aligned_speech(small_tree, path)


@pytest.mark.slow
def test_real_speech_the_order_comes_out_right(shared_speech):
    settings = DiscriminationSettings(max_utterances=6, phones_per_speaker=2, max_speakers=3)
    alignments = shared_speech.parent / "alignments.tsv"
    speech = replace(load_aligned_speech(shared_speech, alignments, ["test-other-100"], settings), words=[])
    errors = []
    for model in (str(ENCODER_DIR), "mfcc", f"random:{ENCODER_DIR}"):
        errors.append(measure(load_features(model), speech, settings=settings)[0].summary()["abx_across"])
    assert errors == sorted(errors)
    assert errors[-1] < 0.5
