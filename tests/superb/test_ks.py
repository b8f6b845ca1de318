"""Keyword spotting: the split of Speech Commands, SUPERB's drawing of classes, and commands on the shipped words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import soundfile
import torch

from laser_hf.data import decode_audio, read_table
from laser_hf.demo import ENCODER_DIR, SPEECH_DIR
from laser_hf.errors import LaserError
from laser_hf.superb import ks
from laser_hf.superb.__main__ import main
from laser_hf.superb.sid import MeanHead, train_heads

WORDS = ["yellow", "winter", "bridge"]
OTHERS = ["river", "teacher"]
FEW = ["--keywords", *WORDS, "--max_steps", "150", "--eval_steps", "50", "--learning_rate", "0.003", "--device", "cpu"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Words of the shipped voices in the layout of Speech Commands, with a recording of noise."""
    folder, waveforms = tmp_path_factory.mktemp("words"), {}
    for number, (_, row) in enumerate(read_table(SPEECH_DIR / "words.tsv", ("utterance", "split", "speaker", "word"))):
        if row["word"] not in WORDS + OTHERS:
            continue
        if row["utterance"] not in waveforms:
            (path,) = SPEECH_DIR.rglob(f"{row['utterance']}.*")
            waveforms[row["utterance"]] = decode_audio(str(path)).waveform.numpy()
        first, count = (round(16_000 * float(row[name])) for name in ("start_seconds", "duration_seconds"))
        path = folder / row["word"] / f"{row['speaker']}_nohash_{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, waveforms[row["utterance"]][first : first + count], 16_000)
    (folder / ks.NOISE).mkdir()
    noise = np.random.default_rng(0).standard_normal(48_000) * np.repeat([0.02, 0.05, 0.1], 16_000)
    soundfile.write(folder / ks.NOISE / "hiss.wav", noise, 16_000)
    return folder


def test_the_split_of_the_data_set():
    """Speakers of the first lines of `validation_list.txt` and `testing_list.txt` of Speech Commands 0.01."""
    dev = "a69b9b3e 439c84f4 409c962a dbaf8fc6 a6d586b7 0e17f595 ff2b842e 7fd25f7c 3cc595de 8b775397 2643992f 060cd039"
    test = "bb05582b 97f4c236 f2e59fea fdb5155e dc75148d 3f170018 18f8afd5 e1469561 5c8af87a aa48c94a 0c40e715 893705bb"
    for role, speakers in (("dev", dev), ("test", test)):
        assert {ks.role_of(f"{one}_nohash_{take}.wav") for one in speakers.split() for take in range(3)} == {role}
    roles = Counter(ks.role_of(f"{number:08x}_nohash_0.wav") for number in range(20_000))
    shares = {role: count / 20_000 for role, count in roles.items()}
    assert shares == pytest.approx({"train": 0.8, "dev": 0.1, "test": 0.1}, abs=0.01)


def test_every_class_is_drawn_and_counted_equally():
    """Of 95 items of one class and 5 of the other, both are seen as often: SUPERB's WeightedRandomSampler."""
    labels, dev = torch.tensor([0] * 95 + [1] * 5), torch.tensor([0] * 9 + [1])
    means = torch.zeros(1, 100, 2)  # nothing to tell them apart by: what is learned is how often each is drawn
    data = [(means, labels), (means[:, :10], dev), (means[:, :10], dev)]
    torch.manual_seed(0)
    head, values = MeanHead(1, 2, 2, layer=0), {"max_steps": 400, "eval_steps": 100, "learning_rate": 1e-2}
    (found,) = train_heads([head], data, values, 0, balanced=True)
    assert head(means)[0].softmax(0)[1].item() == pytest.approx(0.5, abs=0.1)
    assert found["dev"] == 50
    assert found["test"] in (10, 90)
    head = MeanHead(1, 2, 2, layer=0)
    (found,) = train_heads([head], data, values, 0)
    assert head(means)[0].softmax(0)[1].item() < 0.2
    assert found["dev"] == found["test"] == 90


def test_crops_of_noise_cover_the_recording(words):
    whole = decode_audio(str(words / ks.NOISE / "hiss.wav")).waveform.numpy()
    crops = [one["array"] for one in ks.noise_crops(words / ks.NOISE / "hiss.wav")]
    assert len(crops) == ks.CROPS
    assert {len(one) for one in crops} == {16_000}
    np.testing.assert_array_equal(crops[0], whole[:16_000])
    np.testing.assert_array_equal(crops[-1], whole[-16_000:])


def test_words_of_the_shipped_voices(words, tmp_path, capsys):
    """Without a test folder a tenth of the speakers is kept; the shipped encoder knows the words of other voices."""
    run = ["ks", "--model", str(ENCODER_DIR), "--data", str(words), *FEW]
    record = main([*run, "--output_dir", str(tmp_path / "a")])
    assert (record["task"], record["metric"], record["protocol"]) == ("ks", "accuracy", "quick")
    assert {"train", "dev", "test", "max_steps", "keywords"} <= record["changed_from_superb"].keys()
    assert list(record["last_layer_right"]) == [*WORDS, ks.UNKNOWN, ks.SILENCE]
    assert record["chance"] == 20
    assert record["value"] > 70
    roles = {
        role: {ks.role_of(path.name) == role for path in words.rglob("v*.wav")} for role in ("train", "dev", "test")
    }
    assert set(map(len, roles.values())) == {2}
    few = main([*run, "--per_class", "4", "--output_dir", str(tmp_path / "few")])
    assert few["data"]["train"]["utterances"] == 20
    tables = main(["table", str(tmp_path / "a"), "--output", str(tmp_path / "t.md")])
    assert "keyword spotting, %, test (quick)" in tables[-1].columns.values()


def test_a_folder_to_test_on_and_silence_in_it(words, tmp_path):
    """A silent recording of the class of silence is a recording; of another class it is skipped, and said."""
    for name in (*WORDS, ks.SILENCE):
        (tmp_path / "test" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "test" / name / "zeros.wav", np.zeros(16_000), 16_000)
    for path in sorted((words / WORDS[0]).iterdir())[:3]:
        (tmp_path / "test" / WORDS[0] / path.name).write_bytes(path.read_bytes())
    run = ["ks", "--model", str(ENCODER_DIR), "--data", str(words), "--test_data", str(tmp_path / "test"), *FEW]
    record = main([*run, "--output_dir", str(tmp_path / "out")])
    assert record["data"]["skipped"] == {"silent": 3}
    assert record["data"]["test"]["utterances"] == 4
    assert record["last_layer_right"][ks.SILENCE][1] == 1
    every = sum(1 for path in words.rglob("v*.wav") if ks.role_of(path.name) == "train")
    assert record["data"]["train"]["utterances"] == every + ks.CROPS
    (tmp_path / "test" / "banana").mkdir()
    with pytest.raises(LaserError, match="banana is none of the classes: yellow"):
        main([*run, "--output_dir", str(tmp_path / "out2")])


def test_what_a_user_can_mend(words, tmp_path):
    run = ["ks", "--model", str(ENCODER_DIR), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(LaserError, match="has no folder 'yes'; expected one for each of yes, no"):
        main([*run, "--data", str(words)])
    with pytest.raises(LaserError, match="is no folder; expected a folder of each word"):
        main([*run, "--data", str(tmp_path / "missing")])
    (tmp_path / "empty" / "yes").mkdir(parents=True)
    with pytest.raises(LaserError, match="has no recording for train"):
        main([*run, "--data", str(tmp_path / "empty"), "--keywords", "yes"])


def test_the_official_counts_and_recipe_carry_the_name(tmp_path, monkeypatch, tiny_encoder):
    """The label needs all values of the recipe and the counts of Speech Commands; a tuned rate keeps it."""
    rng, speakers = np.random.default_rng(0), {"train": "0000aaaa", "dev": "a69b9b3e", "test": "bb05582b"}
    speakers["train"] = next(f"{n:08x}" for n in range(99) if ks.role_of(f"{n:08x}_nohash_0.wav") == "train")
    for name in ("yes", "no"):
        for role, speaker in speakers.items():
            path = tmp_path / ("tests" if role == "test" else "data") / name / f"{speaker}_nohash_0.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(8_000), 16_000)
    small = ks.SUPERB | {"keywords": ["yes", "no"], "max_steps": 4, "eval_steps": 2, "train": 2, "dev": 2, "test": 2}
    monkeypatch.setattr(ks, "SUPERB", small)
    run = ["ks", "--model", str(tiny_encoder), "--data", str(tmp_path / "data"), "--test_data", str(tmp_path / "tests")]
    run += ["--keywords", "yes", "no", "--max_steps", "4", "--eval_steps", "2", "--device", "cpu"]
    found = [main([*run, "--output_dir", str(tmp_path / "a")])]
    found += [main([*run, "--learning_rate", "1e-3", "--output_dir", str(tmp_path / "b")])]
    assert [(one["protocol"], list(one["changed_from_superb"])) for one in found] == [
        ("superb", []),
        ("superb", ["learning_rate"]),
    ]
    monkeypatch.setattr(ks, "SUPERB", small | {"train": 3})
    fewer = main([*run, "--output_dir", str(tmp_path / "c")])
    assert (fewer["protocol"], fewer["changed_from_superb"]) == ("quick", {"train": {"superb": 3, "here": 2}})
