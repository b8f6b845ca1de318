"""Sets of pairs: lengths from headers, utterances left out, streams, and decoded audio kept on disk."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import pickle
import shutil
import signal
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, IterableDataset

from laser_hf.data import (
    PairDataset,
    PairStream,
    PairTransform,
    SpeedPitch,
    audio_seconds,
    decode,
    decode_audio,
    draw_generator,
    keep_decoded,
    load_speech,
    pair_sets,
    source_digest,
)
from laser_hf.errors import LaserError

FORMATS = [  # name, format, subtype, rate, channels
    ("a.flac", "FLAC", "PCM_16", 16000, 1),
    ("b.wav", "WAV", "PCM_16", 44100, 2),
    ("c.opus", "OGG", "OPUS", 16000, 1),
    ("d.opus", "OGG", "OPUS", 48000, 1),
    ("e.ogg", "OGG", "VORBIS", 22050, 1),
    ("f.mp3", "MP3", "MPEG_LAYER_III", 16000, 1),
    ("g.mp3", "MP3", "MPEG_LAYER_III", 44100, 1),
]
SECONDS = [0.3 + 0.137 * index for index in range(len(FORMATS))]


@pytest.fixture
def files(tmp_path, speech):
    for (name, format, subtype, rate, channels), seconds in zip(FORMATS, SECONDS, strict=True):
        samples = np.repeat(speech(seconds, rate=rate)[:, None], channels, axis=1)
        soundfile.write(tmp_path / name, samples, rate, format=format, subtype=subtype)
    return tmp_path


@pytest.fixture
def no_decoding(monkeypatch):
    """From when it is called, reading the samples of a file is an error."""

    def forbid():
        monkeypatch.setattr(pair_sets, "decode_audio", None)
        monkeypatch.setattr(pair_sets, "audio_seconds", None)

    return forbid


def pairs_of(speech, **options) -> PairDataset:
    """Pairs with a fixed seed."""
    check = options.pop("check_lengths", None)
    return PairDataset(speech, PairTransform(SpeedPitch(), seed=5, **options), check)


def same(first: dict, second: dict) -> bool:
    """Whether two pairs are equal, bit for bit."""
    if (first["id"], first["drawn"], first["skip"]) != (second["id"], second["drawn"], second["skip"]):
        return False
    return all(torch.equal(first[view], second[view]) for view in ("clean", "perturbed"))


def as_list(items: list) -> list:
    """Collate function: the items as they are."""
    return items


# ---- lengths ----


def test_lengths_from_headers_are_the_decoded_lengths(files):
    speech = load_speech(files)
    pairs = pairs_of(speech)
    assert [row["id"] for row in speech] == [name[0] for name, *_ in FORMATS]
    for row, seconds, written in zip(speech, pairs.seconds, SECONDS, strict=True):
        decoded = len(decode_audio(row["audio"]).waveform) / 16000
        assert seconds == pytest.approx(decoded, abs=0.02)  # a packet of Opus
        if not row["audio"]["path"].endswith("mp3"):
            assert seconds == decoded
        assert seconds == pytest.approx(written, abs=0.08)  # MP3 pads with whole frames
    assert pairs_of(speech, crop_seconds=0.5).seconds == [min(seconds, 0.5) for seconds in pairs.seconds]


def test_bytes_in_the_dataset_give_the_same_lengths(files):
    paths = load_speech(files)
    rows = [{"bytes": (files / name).read_bytes(), "path": name} for name, *_ in FORMATS]
    stored = datasets.Dataset.from_dict({"id": paths["id"], "audio": rows})
    expected = pairs_of(paths).seconds
    assert pairs_of(stored).seconds == expected
    assert pairs_of(stored.select([3, 1])).seconds == [expected[3], expected[1]]


def test_headers_that_cannot_be_read(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", speech(0.5), 16000)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    (tmp_path / "c.wav").write_bytes(b"")
    soundfile.write(tmp_path / "d.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "e.wav", speech(0.5), 16000)
    dataset = load_speech(tmp_path)
    (tmp_path / "e.wav").unlink()
    assert [audio_seconds(row["audio"]) for row in dataset] == [0.5, None, None, 0.0, None]
    assert pairs_of(dataset).seconds == [0.5, 0, 0, 0, 0]
    # Only decoding tells what is wrong with b, c and e; d is known to be too short.
    checked = pairs_of(dataset, check_lengths=True)
    assert [pair["id"] for pair in checked] == ["a", "b", "c", "e"]
    assert [pair["skip"].partition(":")[0] for pair in checked] == ["", "undecodable", "empty", "undecodable"]
    assert checked.seconds == [0.5, 0, 0, 0]
    assert checked.left_out == {"too_short": 1, "too_long": 0}


def test_no_speech_is_refused():
    nothing = datasets.Dataset.from_dict({"id": [], "audio": []}).cast_column("audio", datasets.Audio(decode=False))
    with pytest.raises(LaserError, match="there is no utterance to make pairs of"):
        pairs_of(nothing)


def test_utterances_outside_the_limits_are_left_out(libri):
    speech = load_speech(libri, "train")  # 0.35 s to 0.65 s
    everything = pairs_of(speech)
    assert (len(everything), everything.left_out) == (7, {})
    limited = pairs_of(speech, min_seconds=0.42, max_seconds=0.58, crop_seconds=0.5)
    assert limited.left_out == {"too_short": 2, "too_long": 2}
    assert [pair["id"] for pair in limited] == [row["id"] for row in speech.select([2, 3, 4])]
    assert limited.seconds == pytest.approx([0.45, 0.5, 0.5])
    assert len(pairs_of(speech, min_seconds=0.42)) == 7
    assert len(pairs_of(speech, min_seconds=0.42, check_lengths=True)) == 5
    unchecked = pairs_of(speech, max_seconds=0.58, check_lengths=False)
    assert [bool(pair["skip"]) for pair in unchecked] == [False] * 5 + [True] * 2
    with pytest.raises(LaserError, match=r"no utterance is at least min_seconds 3 .*too_short': 7"):
        pairs_of(speech, min_seconds=3, max_seconds=4)


def test_lengths_are_cached_until_a_file_changes(libri, speech, no_decoding, monkeypatch):
    monkeypatch.setattr(pair_sets, "ROWS_PER_PROCESS", 3)  # two processes, if there are two cores
    before = pairs_of(load_speech(libri, "train")).seconds
    assert len(before) == 7
    soundfile.write(libri / "train/10/20/10-20-0000.flac", speech(0.9), 16000)
    after = pairs_of(load_speech(libri, "train")).seconds
    assert after == [0.9, *before[1:]]
    no_decoding()
    assert pairs_of(load_speech(libri, "train")).seconds == after


def test_the_fingerprint_is_of_the_speech_and_not_of_its_place(libri, tmp_path, speech):
    train = libri / "train"
    original = pairs_of(load_speech(libri, "train"))
    before = original.fingerprint()
    moved = shutil.copytree(train, tmp_path / "other" / "place")
    assert pairs_of(load_speech(moved)).fingerprint() == before
    assert pairs_of(keep_decoded(load_speech(moved), tmp_path / "kept")).fingerprint() == before
    assert pairs_of(original.speech.select([1, 0, 2, 3, 4, 5, 6])).fingerprint() != before
    assert pairs_of(original.speech, min_seconds=0.42, check_lengths=True).fingerprint() != before
    first, second = moved / "10/20/10-20-0000.flac", moved / "10/20/10-20-0001.flac"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    swapped = pairs_of(load_speech(moved)).fingerprint()
    second.unlink()
    assert len({before, swapped, pairs_of(load_speech(moved)).fingerprint()}) == 3


def test_the_fingerprint_tells_recordings_of_one_length_apart(tmp_path, speech):
    folder = tmp_path / "clips"
    folder.mkdir()
    first, second = folder / "a.wav", folder / "b.wav"
    for seed, path in enumerate((first, second)):
        soundfile.write(path, speech(1.0, seed=seed), 16000)
    before = pairs_of(load_speech(folder)).fingerprint(), source_digest(folder)
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    swapped = pairs_of(load_speech(folder)).fingerprint(), source_digest(folder)
    assert before[0] != swapped[0]
    assert before[1] != swapped[1]


def test_the_digest_of_a_stream_is_that_of_its_files(libri, tmp_path_factory, speech, encoded):
    tmp_path = tmp_path_factory.mktemp("place")
    before, train = source_digest(libri), source_digest(libri, "train")
    assert source_digest(shutil.copytree(libri, tmp_path / "other"), "train") == train != before
    (libri / "dev" / "words.json").write_text("{}")  # such as a run's record below the speech
    assert source_digest(libri) == before
    soundfile.write(libri / "dev" / "more.wav", speech(0.5), 16000)
    assert source_digest(libri) != before
    assert source_digest(libri, "train") == train
    digests = [train]
    for seconds in (0.5, 0.6):
        rows = {"audio": [{"bytes": encoded(speech(seconds)), "path": "a.flac"}]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "train.parquet")
        digests.append(source_digest(tmp_path / "set"))
    assert len(set(digests)) == 3


# ---- map-style pairs ----


def test_a_set_carries_epoch_and_perturbation(libri):
    pairs = pairs_of(load_speech(libri, "train"))
    assert pairs.perturbation is pairs.transform.perturbation
    pairs.set_epoch(4)
    for one in (pairs, pickle.loads(pickle.dumps(pairs))):
        assert one[0]["drawn"] == SpeedPitch().draw(draw_generator(5, 4, one[0]["id"]))


def test_the_source_is_left_as_it_is(libri):
    speech = load_speech(libri, "train")
    pairs = pairs_of(speech)
    assert set(pairs[3]) == {"id", "clean", "perturbed", "drawn", "skip"}
    assert speech[3].keys() == {"id", "audio", "speaker", "text"}


# ---- streams ----


class OneEpoch(IterableDataset):
    """One epoch of an endless stream."""

    def __init__(self, stream: PairStream, epoch: int):
        self.stream = stream
        self.epoch = epoch

    def __iter__(self):
        rows = self.stream.rows(self.epoch)
        return (self.stream.transform.pair(row["id"], row["audio"], self.epoch) for row in rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_pairs_of_a_stream_are_those_of_the_set(libri, workers):
    reference = list(pairs_of(load_speech(libri, "train")))
    stream = PairStream(load_speech(libri, "train", streaming=True), PairTransform(SpeedPitch(), seed=5), 1, 3)
    found = [pair for (pair,) in DataLoader(OneEpoch(stream, 0), num_workers=workers, collate_fn=as_list)]
    assert [pair["id"] for pair in found] != [pair["id"] for pair in reference]
    by_id = {pair["id"]: pair for pair in found}
    assert len(by_id) == len(found) == len(reference)
    assert all(same(by_id[pair["id"]], pair) for pair in reference)


def test_a_stream_goes_on_with_other_orders_and_draws(libri):
    stream = PairStream(load_speech(libri, "train", streaming=True), PairTransform(SpeedPitch(), seed=5))
    found = list(itertools.islice(stream, 21))
    epochs = [found[:7], found[7:14], found[14:]]
    assert len({tuple(pair["id"] for pair in epoch) for epoch in epochs}) == 3
    for number, epoch in enumerate(epochs):
        assert len({pair["id"] for pair in epoch}) == 7
        assert all(pair["drawn"] == SpeedPitch().draw(draw_generator(5, number, pair["id"])) for pair in epoch)
    stream.set_epoch(2)
    assert all(same(*both) for both in zip(epochs[2], stream, strict=False))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (0, 3), (1, 2), (2, 3)])
def test_what_is_skipped_is_neither_decoded_nor_perturbed(libri, workers, batch_size):
    stream = PairStream(load_speech(libri, "train", streaming=True), PairTransform(SpeedPitch(), seed=5), 1, 3)

    def batches(stream: PairStream) -> list[list[dict]]:
        loader = DataLoader(stream, batch_size, num_workers=workers, collate_fn=as_list)
        return list(itertools.islice(loader, 11))

    whole = batches(stream)
    for skipped in (1, 2, 9):
        found = batches(stream.skip(skipped * batch_size, batch_size))
        assert found[:skipped] == [[None] * batch_size] * skipped
        pairs = zip(itertools.chain(*found[skipped:]), itertools.chain(*whole[skipped:]), strict=True)
        assert all(same(*both) for both in pairs)


def test_a_stream_without_features(libri):
    """Streams from generators or from the Hub may not know their columns."""
    rows = list(load_speech(libri, "train"))
    unknown = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert unknown.features is None
    found = {pair["id"]: pair for pair in OneEpoch(PairStream(unknown, PairTransform(SpeedPitch(), seed=5)), 0)}
    assert all(same(found[pair["id"]], pair) for pair in pairs_of(load_speech(libri, "train")))


def test_an_empty_stream_ends():
    nothing = datasets.IterableDataset.from_generator(lambda: iter(()))
    assert list(PairStream(nothing, PairTransform(SpeedPitch()))) == []


@pytest.mark.slow
@pytest.mark.parametrize("utterances", [80, 63, 3])  # 64 files: a multiple of two processes; 63 and 3: not
def test_every_utterance_once_over_processes_and_workers(tmp_path, utterances):
    for index in range(utterances):
        (tmp_path / f"{index:03d}.flac").write_bytes(b"")
    speech = load_speech(tmp_path, streaming=True)
    assert speech.num_shards == min(utterances, 64)

    def read(epoch: int) -> list[list[str]]:
        seen = []
        for rank in range(2):
            stream = PairStream(speech, PairTransform(SpeedPitch()), 3, 5, rank, 2)
            assert stream.num_shards == {80: 32, 63: 63, 3: 3}[utterances]
            workers = min(stream.num_shards, 3)
            loader = DataLoader(OneEpoch(stream, epoch), batch_size=2, num_workers=workers, collate_fn=as_list)
            seen.append([pair["id"] for batch in loader for pair in batch])
        return seen

    first, again, second = read(0), read(0), read(1)
    everything = Counter(f"{index:03d}" for index in range(utterances))
    assert Counter(first[0] + first[1]) == Counter(second[0] + second[1]) == everything
    assert abs(len(first[0]) - len(first[1])) <= 1 + utterances // 64  # of the 80, 16 files hold two
    assert first == again
    if utterances > 3:
        assert first != second
        assert first[0] != sorted(first[0])


# ---- decoded audio ----


def kept(dataset) -> list[str]:
    """Number formats of the decoded utterances."""
    return [soundfile.info(decode._source(row["audio"])[1]).subtype for row in dataset]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_decoded_pairs_are_the_same(libri, tmp_path, monkeypatch, no_decoding, processes):
    monkeypatch.setattr(pair_sets.os, "cpu_count", lambda: processes)
    monkeypatch.setattr(pair_sets, "ROWS_PER_PROCESS", 3)
    speech = load_speech(libri, "train")
    expected = pairs_of(speech)
    lengths = expected.seconds
    for attempt in range(2):
        decoded = keep_decoded(speech, tmp_path / "kept")
        assert len(list((tmp_path / "kept").iterdir())) == processes
        assert all(same(*both) for both in zip(pairs_of(decoded), expected, strict=True))
        assert decoded.remove_columns("audio").to_dict() == speech.remove_columns("audio").to_dict()
        if attempt == 0:
            assert pairs_of(decoded).seconds == lengths
            no_decoding()
    # Three 16-bit FLAC and two 16-bit WAV utterances; two in Ogg Vorbis, which decodes to real numbers.
    assert Counter(kept(decoded)) == {"PCM_16": 5, "FLOAT": 2}
    loader = DataLoader(pairs_of(decoded), num_workers=2, collate_fn=as_list)
    assert all(same(pair, other) for (pair,), other in zip(loader, expected, strict=True))


def test_extremes_of_16_bits_and_everything_beyond(tmp_path):
    full = np.tile(np.array([-32768, 32767, 0, 1], np.int16), 1000)
    written = {
        "fine.wav": ((full.astype(np.int32) << 8) + 1 << 8, "PCM_24", "FLOAT"),
        "full.wav": (full, "PCM_16", "PCM_16"),
        "loud.wav": (full.astype(np.float32) / 16384, "FLOAT", "FLOAT"),
    }
    for name, (samples, subtype, _) in written.items():
        soundfile.write(tmp_path / name, samples, 16000, subtype=subtype)
    speech = load_speech(tmp_path)
    decoded = keep_decoded(speech, tmp_path / "kept")
    assert kept(decoded) == [subtype for _, _, subtype in written.values()]
    for one, other in zip(decoded, speech, strict=True):
        assert torch.equal(decode_audio(one["audio"]).waveform, decode_audio(other["audio"]).waveform)


def test_other_rates_and_bytes_are_kept_decoded(files):
    speech = load_speech(files)
    rows = [{"bytes": Path(row["audio"]["path"]).read_bytes(), "path": None} for row in speech]
    stored = datasets.Dataset.from_dict({"id": speech["id"], "audio": rows})
    for source in (speech, stored):
        decoded = keep_decoded(source, files / "kept")
        for one, other in zip(decoded, speech, strict=True):
            found = decode_audio(one["audio"])
            assert torch.equal(found.waveform, decode_audio(other["audio"]).waveform)
            assert found[1:] == (16000, 1)
    assert len(list((files / "kept").iterdir())) == 2


@pytest.fixture
def a_hang_fails():
    """Interrupt the test after two minutes."""

    def stop(*_):
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("a_hang_fails")
def test_forked_processes_do_not_wait_for_threads_of_their_parent(files, monkeypatch):
    monkeypatch.setattr(pair_sets.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(pair_sets, "ROWS_PER_PROCESS", 3)
    speech = load_speech(files)
    torch.set_num_threads(2)
    expected = [decode_audio(row["audio"]).waveform for row in speech]  # resampling starts the threads
    torch.nn.functional.conv1d(torch.ones(4, 8, 20000), torch.ones(8, 8, 9))
    decoded = keep_decoded(speech)
    assert all(
        torch.equal(decode_audio(row["audio"]).waveform, one) for row, one in zip(decoded, expected, strict=True)
    )


def test_a_changed_file_is_decoded_again(tmp_path, speech):
    path = tmp_path / "a.wav"
    soundfile.write(path, speech(0.3, 0), 16000)

    def waveform(source=tmp_path):
        (row,) = keep_decoded(load_speech(source), tmp_path / "kept")
        return decode_audio(row["audio"]).waveform

    before = waveform()
    soundfile.write(path, speech(0.3, 1), 16000)  # as many bytes
    os.utime(path, ns=(1, 1))
    after = waveform()
    assert not torch.equal(after, before)
    assert torch.equal(after, decode_audio(path).waveform)
    changed = os.stat(path)
    soundfile.write(path, speech(0.4, 1), 16000)
    os.utime(path, ns=(changed.st_atime_ns, changed.st_mtime_ns))  # another size at the same time
    assert torch.equal(waveform(), decode_audio(path).waveform)


def test_bad_audio_stays_and_limits_hold_later(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", speech(0.3), 16000)
    soundfile.write(tmp_path / "b.wav", np.zeros(8000), 16000)
    (tmp_path / "c.wav").write_text("no audio")
    source = load_speech(tmp_path)
    decoded = keep_decoded(source, tmp_path / "kept")
    for options in ({}, {"min_seconds": 0.4}, {"max_seconds": 0.2, "check_lengths": False}):
        expected = [pair["skip"] for pair in pairs_of(source, **options)]
        assert [pair["skip"] for pair in pairs_of(decoded, **options)] == expected
    assert [row["audio"]["bytes"] is None for row in decoded] == [False, True, True]


def test_folders_that_cannot_be_written(tmp_path, speech, monkeypatch):
    soundfile.write(tmp_path / "a.wav", speech(0.3), 16000)
    source = load_speech(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LaserError, match=r"cannot write to .*file.*below.*give another folder"):
        keep_decoded(source, tmp_path / "file" / "below")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "map", full)
    with pytest.raises(LaserError, match="No space left on device"):
        keep_decoded(source, tmp_path / "kept")


def test_a_file_system_that_cannot_be_reached_is_no_full_disk(tmp_path, monkeypatch):
    speech = datasets.Dataset.from_dict({"id": ["a"], "audio": [{"bytes": None, "path": "hf://datasets/no/body.wav"}]})
    with pytest.raises(OSError, match=r"offline|reach|connect") as caught:
        pairs_of(speech).seconds  # noqa: B018
    assert not isinstance(caught.value, LaserError)


def test_the_default_folder_is_the_cache_of_datasets(libri, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="laser_hf.data"):
        pairs_of(load_speech(libri, "train"), max_seconds=0.5)
        keep_decoded(load_speech(libri, "dev"))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "laser_hf"
    assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == ["decoded", "headers"]
    assert "4 utterances, 0.0 hours; left out: {'too_short': 0, 'too_long': 3}" in caplog.text
