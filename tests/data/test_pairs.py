"""Pairs: the same whatever reads them, another draw each epoch, and nothing lost silently."""

from __future__ import annotations

import pickle
from collections import Counter

import datasets
import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from laser_hf.data import (
    Compose,
    PairCollator,
    PairTransform,
    Perturbation,
    SkipLog,
    SpeedPitch,
    decode_audio,
    draw_generator,
    load_speech,
    shuffled_stream,
    with_pairs,
)
from laser_hf.data.decode import KINDS


def as_list(items: list) -> list:
    """Collate function: the items as they are."""
    return items


def same(first: dict, second: dict) -> bool:
    """Whether two items are equal, bit for bit."""
    if (first["id"], first["drawn"], first["skip"]) != (second["id"], second["drawn"], second["skip"]):
        return False
    return all(torch.equal(first[view], second[view]) for view in ("clean", "perturbed"))


def test_a_pair(libri):
    speech = load_speech(libri, "train")
    item = with_pairs(speech, PairTransform(SpeedPitch(), seed=5))[3]
    assert set(item) == {"id", "clean", "perturbed", "drawn", "skip", "seconds"}
    assert item["id"] == "10-21-0000"
    assert item["skip"] == ""
    clean = decode_audio(speech[3]["audio"]).waveform
    assert torch.equal(item["clean"], clean)
    assert torch.equal(item["perturbed"], SpeedPitch()(clean, draw_generator(5, 0, "10-21-0000")))
    assert item["drawn"] == SpeedPitch().draw(draw_generator(5, 0, "10-21-0000"))
    assert item["clean"].dtype == item["perturbed"].dtype == torch.float32
    assert speech[3].keys() == {"id", "audio", "speaker", "text"}  # the source is left as it is


def test_a_pair_that_is_perturbed_later(libri):
    """The draw is the one of the complete pair, and carrying it out gives the same view."""
    speech = load_speech(libri, "train")
    complete = with_pairs(speech, PairTransform(SpeedPitch(), seed=5))
    later = list(with_pairs(speech, PairTransform(SpeedPitch(), seed=5, perturb=False)))
    batch = PairCollator()(later)
    assert batch["perturbed"] is batch["perturbed_lengths"] is None
    perturbed = SpeedPitch().apply_batch([item["clean"] for item in later], batch["drawn"])
    for one, item, view in zip(complete, later, perturbed, strict=True):
        assert item["perturbed"] is None
        assert same(one, item | {"perturbed": view})
    assert one["seconds"]["decode"] > 0 < one["seconds"]["perturb"]
    assert item["seconds"]["perturb"] == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_do_not_depend_on_what_reads_them(libri, workers, streaming):
    reference = list(with_pairs(load_speech(libri, "train"), PairTransform(SpeedPitch(), seed=5)))
    speech = load_speech(libri, "train", streaming=streaming)
    if streaming:
        speech = shuffled_stream(speech, seed=1, buffer_size=3)
    loader = DataLoader(
        with_pairs(speech, PairTransform(SpeedPitch(), seed=5)),
        batch_size=2,
        shuffle=None if streaming else True,
        num_workers=workers,
        collate_fn=as_list,
        generator=torch.Generator().manual_seed(1),
    )
    found = {item["id"]: item for batch in loader for item in batch}
    assert list(found) != [item["id"] for item in reference]
    assert len(found) == len(reference)
    assert all(same(found[item["id"]], item) for item in reference)


@pytest.mark.parametrize(
    ("streaming", "context"),
    [(False, "fork"), (True, "fork"), pytest.param(False, "spawn", marks=pytest.mark.slow)],
)
def test_persistent_workers_see_the_epoch(libri, streaming, context):
    transform = PairTransform(SpeedPitch(speed_factors=[0.8, 0.9, 1.0, 1.1, 1.2]), seed=5)
    dataset = with_pairs(load_speech(libri, "train", streaming=streaming), transform)
    loader = DataLoader(
        dataset, num_workers=1, collate_fn=as_list, persistent_workers=True, multiprocessing_context=context
    )
    by_epoch = []
    for epoch in (0, 1, 0):
        transform.set_epoch(epoch)
        drawn = {item["id"]: item["drawn"] for (item,) in loader}
        assert drawn == {name: transform.perturbation.draw(draw_generator(5, epoch, name)) for name in drawn}
        by_epoch.append(drawn)
    assert by_epoch[0] == by_epoch[2] != by_epoch[1]


def test_the_epoch_reaches_datasets_derived_before(libri):
    transform = PairTransform(SpeedPitch(), seed=5)
    paired = with_pairs(load_speech(libri, "train"), transform)
    derived = [paired.select([2, 1]), paired.shuffle(seed=0), paired.shard(2, 0)]
    transform.set_epoch(4)
    assert transform.epoch == 4
    for dataset in derived:
        assert dataset[0]["drawn"] == SpeedPitch().draw(draw_generator(5, 4, dataset[0]["id"]))
    copy = pickle.loads(pickle.dumps(transform))
    assert copy.epoch == 4


def test_a_stream_without_features(libri):
    """Streams from generators or from the Hub may not know their columns."""
    rows = list(load_speech(libri, "train"))
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert stream.features is None
    transform = PairTransform(SpeedPitch(), seed=5)
    expected = with_pairs(load_speech(libri, "train"), transform)
    assert all(same(*items) for items in zip(with_pairs(stream, transform), expected, strict=True))


@pytest.fixture
def damaged(libri, speech):
    """The tree with one more utterance of each kind of bad audio, the kind being its number's name."""
    folder = libri / "train/11/1"
    folder.mkdir(parents=True)

    def write(index, samples):
        soundfile.write(folder / f"11-1-{index:04d}.wav", samples, 16000, subtype="FLOAT")

    nan = speech(0.5)
    nan[100] = np.nan
    (folder / "11-1-0000.wav").write_bytes(b"no audio")
    write(1, np.zeros(0))
    write(2, speech(0.05))
    write(3, speech(3.0))
    write(4, nan)
    write(5, np.zeros(8000))
    return libri


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_audio_is_skipped_and_counted(damaged, streaming, workers, caplog):
    transform = PairTransform(SpeedPitch(), max_seconds=2.0)
    dataset = with_pairs(load_speech(damaged, "train", streaming=streaming), transform)
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, collate_fn=PairCollator())
    log, kept = SkipLog(), []
    for _ in range(2):
        for batch in loader:
            log.update(batch["skipped"])
            kept += batch["ids"]
    good = [row["id"] for row in load_speech(damaged, "train") if not row["id"].startswith("11-1-")]
    assert Counter(kept) == dict.fromkeys(good, 2)
    assert log.summary() == {"utterances": 6, "times": 12, "by_kind": dict.fromkeys(sorted(KINDS), 1)}
    messages = [record.getMessage() for record in caplog.records if record.name == "laser_hf.data.collator"]
    assert len(messages) == 6
    for index, kind in enumerate(KINDS):
        assert any(message.startswith(f"skipped utterance 11-1-{index:04d}: {kind}: ") for message in messages)


class Broken(Perturbation):
    """Gives what it is told to give."""

    def __init__(self, result):
        self.result = result

    def draw(self, rng):
        return {}

    def apply(self, waveform):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_a_bad_perturbed_view(libri):
    for result, kind in ((torch.full((100,), float("nan")), "nan"), (torch.zeros(0), "empty")):
        item = with_pairs(load_speech(libri, "train"), PairTransform(Broken(result)))[0]
        assert item["skip"].startswith(f"{kind}: the perturbed view")
        assert item["clean"] is item["perturbed"] is None
    dataset = with_pairs(load_speech(libri, "train"), PairTransform(Broken(KeyError("x"))))
    with pytest.raises(RuntimeError, match=r"perturbing '10-20-0000' with \{\} failed: 'x'"):
        dataset[0]


def test_crops(libri):
    """Long utterances lose all but a part, anew each epoch; nothing else changes, the draws neither."""
    speech = load_speech(libri, "train")
    transform = PairTransform(SpeedPitch(), seed=5, crop_seconds=0.5)
    whole, cropped = list(with_pairs(speech, PairTransform(SpeedPitch(), seed=5))), list(with_pairs(speech, transform))
    assert sum(len(item["clean"]) > 8000 for item in whole) == 3
    for before, after in zip(whole, cropped, strict=True):
        assert after["drawn"] == before["drawn"]
        if len(before["clean"]) <= 8000:
            assert same(before, after)
            continue
        places = before["clean"].unfold(0, 8000, 1)
        # Random numbers of its own: else the place would go with what is drawn for the perturbation.
        start = int(draw_generator(5, 0, f"{before['id']}\ncrop").integers(len(places)))
        assert torch.equal(after["clean"], places[start])
        assert torch.equal(after["perturbed"], SpeedPitch().apply(after["clean"], **after["drawn"]))
        assert after["clean"].untyped_storage().nbytes() == 4 * 8000  # nothing more goes to the main process
    long = max(range(len(whole)), key=lambda index: len(whole[index]["clean"]))
    starts = set()
    for epoch in range(300):
        cut = transform.at_epoch(epoch).pair(speech[long]["id"], speech[long]["audio"])["clean"]
        assert len(cut) == 8000
        starts.add(int((whole[long]["clean"].unfold(0, 50, 1) == cut[:50]).all(1).nonzero()))
    spare = len(whole[long]["clean"]) - 8000
    assert len(starts) > 200
    assert min(starts) < 0.03 * spare
    assert 0.97 * spare < max(starts) <= spare


def test_crops_come_after_the_limit(libri):
    speech = load_speech(libri, "train")
    items = list(with_pairs(speech, PairTransform(SpeedPitch(), max_seconds=0.5, crop_seconds=0.4)))
    assert sum(item["skip"].startswith("too_long") for item in items) == 3
    assert max(len(item["clean"]) for item in items if not item["skip"]) == 6400


@pytest.mark.parametrize("seconds", [0.05, 0, -1, float("nan"), float("inf")])
def test_crops_of_no_use_are_refused(seconds):
    with pytest.raises(ValueError, match="crop_seconds must be positive and at least min_seconds"):
        PairTransform(SpeedPitch(), crop_seconds=seconds)


def test_a_crop_of_no_samples_is_refused():
    with pytest.raises(ValueError, match="crop_seconds must be positive"):
        PairTransform(SpeedPitch(), min_seconds=0, crop_seconds=0)


class NamesTheVoice(Broken):
    """Draws whose voice it is."""

    def draw_for(self, rng, utterance_id):
        return {"voice": utterance_id}

    def apply(self, waveform, *, voice):
        return waveform + len(voice)


def test_the_perturbation_learns_the_utterance(libri):
    item = with_pairs(load_speech(libri, "train"), PairTransform(NamesTheVoice(None)))[3]
    assert item["drawn"] == {"voice": "10-21-0000"}
    assert torch.equal(item["perturbed"], item["clean"] + 10)


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="works at 8000 Hz, the pairs are asked for at 16000 Hz"):
        PairTransform(SpeedPitch(sample_rate=8000))
    with pytest.raises(ValueError, match="works at 8000 Hz"):
        PairTransform(Compose([SpeedPitch(sample_rate=8000)]))
    with pytest.raises(ValueError, match=r"different rates cannot be composed: \[8000, 16000\] Hz"):
        Compose([SpeedPitch(), SpeedPitch(sample_rate=8000)])
    with pytest.raises(ValueError, match=r"max_seconds 0.05 is below min_seconds 0.1"):
        PairTransform(SpeedPitch(), max_seconds=0.05)
