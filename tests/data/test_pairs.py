"""Pairs: the same whatever reads them, another draw each epoch, and nothing lost silently."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from laser_hf.data import (
    PairDataset,
    PairStream,
    PairTransform,
    Perturbation,
    SkipLog,
    SpeedPitch,
    begin_pairs,
    decode_audio,
    draw_generator,
    load_speech,
    pad_pairs,
)
from laser_hf.data.decode import KINDS, BadAudio
from laser_hf.errors import LaserError


def as_list(items: list) -> list:
    """Collate function: the items as they are."""
    return items


def pairs_of(libri, transform: PairTransform) -> PairDataset:
    """Pairs of the split `train`."""
    return PairDataset(load_speech(libri, "train"), transform)


def stream_of(libri, transform: PairTransform) -> PairStream:
    """Pairs of the split `train`, endless."""
    return PairStream(load_speech(libri, "train", streaming=True), transform)


def same(first: dict, second: dict) -> bool:
    """Whether two pairs are equal, bit for bit."""
    if (first["id"], first["drawn"], first["skip"]) != (second["id"], second["drawn"], second["skip"]):
        return False
    return all(torch.equal(first[view], second[view]) for view in ("clean", "perturbed"))


def test_a_pair(libri):
    item = pairs_of(libri, PairTransform(SpeedPitch(), seed=5))[3]
    assert item["id"] == "10-21-0000"
    assert item["skip"] == ""
    clean = decode_audio(load_speech(libri, "train")[3]["audio"]).waveform
    assert torch.equal(item["clean"], clean)
    assert torch.equal(
        item["perturbed"], SpeedPitch().apply(clean, **SpeedPitch().draw(draw_generator(5, 0, "10-21-0000")))
    )
    assert item["drawn"] == SpeedPitch().draw(draw_generator(5, 0, "10-21-0000"))
    assert item["clean"].dtype == item["perturbed"].dtype == torch.float32


def test_a_pair_that_is_perturbed_later(libri):
    """The draw is the one of the complete pair, and carrying it out gives the same view."""
    complete = pairs_of(libri, PairTransform(SpeedPitch(), seed=5))
    later = list(pairs_of(libri, PairTransform(SpeedPitch(), seed=5, perturb=False)))
    perturbed = SpeedPitch().apply_batch([item["clean"] for item in later], [item["drawn"] for item in later])
    for one, item, view in zip(complete, later, perturbed, strict=True):
        assert item["perturbed"] is None
        assert same(one, item | {"perturbed": view})


@pytest.mark.parametrize("workers", [0, 2])
def test_pairs_do_not_depend_on_what_reads_them(libri, workers):
    reference = list(pairs_of(libri, PairTransform(SpeedPitch(), seed=5)))
    loader = DataLoader(
        pairs_of(libri, PairTransform(SpeedPitch(), seed=5)),
        batch_size=2,
        shuffle=True,
        num_workers=workers,
        collate_fn=as_list,
        generator=torch.Generator().manual_seed(1),
    )
    found = {item["id"]: item for batch in loader for item in batch}
    assert list(found) != [item["id"] for item in reference]
    assert len(found) == len(reference)
    assert all(same(found[item["id"]], item) for item in reference)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_persistent_workers_see_the_epoch(libri, context):
    dataset = pairs_of(libri, PairTransform(SpeedPitch(speed_factors=[0.8, 0.9, 1.0, 1.1, 1.2]), seed=5))
    loader = DataLoader(
        dataset, num_workers=1, collate_fn=as_list, persistent_workers=True, multiprocessing_context=context
    )
    by_epoch = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        drawn = {item["id"]: item["drawn"] for (item,) in loader}
        assert drawn == {name: dataset.perturbation.draw(draw_generator(5, epoch, name)) for name in drawn}
        by_epoch.append(drawn)
    assert by_epoch[0] == by_epoch[2] != by_epoch[1]


def test_persistent_workers_of_a_stream_begin_at_the_epoch(libri):
    stream = stream_of(libri, PairTransform(SpeedPitch(speed_factors=[0.8, 0.9, 1.0, 1.1, 1.2]), seed=5))
    loader = DataLoader(stream, num_workers=1, collate_fn=as_list, persistent_workers=True)
    for epoch in (0, 3):
        stream.set_epoch(epoch)
        for (item,) in itertools.islice(loader, 7):
            assert item["drawn"] == stream.perturbation.draw(draw_generator(5, epoch, item["id"]))


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
    write(6, speech(1.0))
    cut = folder / "11-1-0006.wav"
    cut.write_bytes(cut.read_bytes()[:32000])
    return libri


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_audio_is_skipped_and_counted(damaged, streaming, workers, caplog):
    transform = PairTransform(SpeedPitch(), max_seconds=2.0)
    if streaming:
        dataset = stream_of(damaged, transform)
    else:
        dataset = PairDataset(load_speech(damaged, "train"), transform, check_lengths=False)
    loader = DataLoader(dataset, num_workers=workers, collate_fn=pad_pairs)
    log, kept = SkipLog(), []
    for _ in range(2):
        for batch in itertools.islice(loader, 14):
            log.update(batch["skipped"])
            kept += batch["ids"]
    good = [row["id"] for row in load_speech(damaged, "train") if not row["id"].startswith("11-1-")]
    if workers < 2 or not streaming:  # each of two workers has a stream of its own
        assert Counter(kept) == dict.fromkeys(good, 2)
        assert log.summary() == {"utterances": 7, "times": 14, "by_kind": dict.fromkeys(sorted(KINDS), 1)}
    messages = [record.getMessage() for record in caplog.records if record.name == "laser_hf.data.pairs"]
    assert len(messages) == 7
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
    for result, kind in ((torch.full((500,), float("nan")), "nan"), (torch.zeros(0), "empty")):
        item = pairs_of(libri, PairTransform(Broken(result)))[0]
        assert item["skip"].startswith(f"{kind}: the perturbed view")
        assert item["clean"] is item["perturbed"] is None
    dataset = pairs_of(libri, PairTransform(Broken(KeyError("x"))))
    with pytest.raises(RuntimeError, match=r"perturbing '10-20-0000' with \{\} failed: 'x'"):
        dataset[0]
    # What the user can mend keeps its message; a perturbation may refuse an utterance.
    with pytest.raises(LaserError, match=r"^mend the folder$"):
        pairs_of(libri, PairTransform(Broken(LaserError("mend the folder"))))[0]
    assert pairs_of(libri, PairTransform(Broken(BadAudio("too_short", "for me"))))[0]["skip"] == "too_short: for me"


class ByName(Perturbation):
    """An utterance's view is what its last letter says."""

    def draw(self, rng):
        return {}

    def draw_for(self, rng, utterance_id):
        return {"letter": utterance_id[-1]}

    def apply(self, waveform, *, letter):
        if letter == "r":
            raise BadAudio("too_long", "refused")
        views = {"n": torch.where(torch.arange(len(waveform)) == 3, torch.nan, waveform), "e": waveform[:0]}
        return {**views, "s": waveform[:399], "k": waveform.flip(0)}[letter]


def test_what_cannot_be_perturbed_is_skipped_alike_in_workers_and_on_the_device(libri):
    """Refused, NaN, empty, shorter than the receptive field; and all is well."""
    audio = load_speech(libri, "train")[0]["audio"]
    names = ["r", "n", "e", "s", "k", "n", "k"]
    worker = [PairTransform(ByName()).pair(name, audio) for name in names]
    kinds = [pair["skip"].partition(":")[0] for pair in worker]
    assert kinds == ["too_long", "nan", "empty", "too_short", "", "nan", ""]
    device = PairTransform(ByName(), perturb=False)
    for some in (names, names[1:], names[:1], names[-1:]):
        made = begin_pairs([device.pair(name, audio) for name in some], device.perturbation)()
        for one, other in zip(made, worker[-len(some) :] if some != ["r"] else worker[:1], strict=True):
            assert one["skip"] == other["skip"]
            assert one["skip"] or same(one, other)
    assert begin_pairs([], device.perturbation)() == []


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_an_utterance_without_memory_for_it_is_named(libri, error):
    perturbation = Broken(error)
    row = load_speech(libri, "dev")[0]
    advice = "does not fit into memory; give --max_seconds or --crop_seconds"
    with pytest.raises(LaserError, match=f"utterance 30-40-0000 {advice}"):
        PairTransform(perturbation).pair(row["id"], row["audio"])
    pair = PairTransform(perturbation, perturb=False).pair(row["id"], row["audio"])
    with pytest.raises(LaserError, match=f"longest utterance is 30-40-0000 {advice}"):
        begin_pairs([pair], perturbation)


def test_views_shorter_than_the_receptive_field_are_skipped(speech):
    audio = {"array": speech(0.026), "sampling_rate": 16000}
    for factor, skip in ((1.0, ""), (1.2, "too_short: the perturbed view"), (2.0, "too_short: the perturbed view")):
        transform = PairTransform(SpeedPitch([factor]), min_seconds=0.02)
        assert transform.pair("a", audio)["skip"].startswith(skip)
    transform.min_samples = 417
    assert transform.pair("a", audio)["skip"].startswith("too_short: 0.026 s (416 samples")


@pytest.mark.slow
def test_crops(libri):
    """Long utterances lose all but a part, anew each epoch; nothing else changes, the draws neither."""
    speech = load_speech(libri, "train")
    transform = PairTransform(SpeedPitch(), seed=5, crop_seconds=0.5)
    whole, cropped = list(pairs_of(libri, PairTransform(SpeedPitch(), seed=5))), list(pairs_of(libri, transform))
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
        cut = transform.pair(speech[long]["id"], speech[long]["audio"], epoch)["clean"]
        assert len(cut) == 8000
        starts.add(int((whole[long]["clean"].unfold(0, 50, 1) == cut[:50]).all(1).nonzero()))
    spare = len(whole[long]["clean"]) - 8000
    assert len(starts) > 200
    assert min(starts) < 0.03 * spare
    assert 0.97 * spare < max(starts) <= spare


def test_crops_come_after_the_limit(libri):
    transform = PairTransform(SpeedPitch(), max_seconds=0.5, crop_seconds=0.4)
    items = list(PairDataset(load_speech(libri, "train"), transform, check_lengths=False))
    assert sum(item["skip"].startswith("too_long") for item in items) == 3
    assert max(len(item["clean"]) for item in items if not item["skip"]) == 6400


@pytest.mark.parametrize("seconds", [0.05, 0, -1, float("nan"), float("inf")])
def test_crops_of_no_use_are_refused(seconds):
    with pytest.raises(ValueError, match="crop_seconds must be at least min_seconds"):
        PairTransform(SpeedPitch(), crop_seconds=seconds)


def test_a_crop_of_no_samples_is_refused():
    with pytest.raises(ValueError, match="crop_seconds must be at least"):
        PairTransform(SpeedPitch(), min_seconds=0, crop_seconds=0)


class NamesTheVoice(Broken):
    """Draws whose voice it is."""

    def draw_for(self, rng, utterance_id):
        return {"voice": utterance_id}

    def apply(self, waveform, *, voice):
        return waveform + len(voice)


def test_the_perturbation_learns_the_utterance(libri):
    item = pairs_of(libri, PairTransform(NamesTheVoice(None)))[3]
    assert item["drawn"] == {"voice": "10-21-0000"}
    assert torch.equal(item["perturbed"], item["clean"] + 10)


def test_contradictions_are_refused():
    with pytest.raises(LaserError, match=r"max_seconds must be at least min_seconds \(0.1\), got 0.05"):
        PairTransform(SpeedPitch(), max_seconds=0.05)
