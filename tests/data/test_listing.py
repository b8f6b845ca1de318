"""Listings that are kept: the same as fresh ones, and made anew whenever the folder is another."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from pathlib import Path

import datasets
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_hf.data import (
    PairDataset,
    PairTransform,
    SpeedPitch,
    find_audio_files,
    listing,
    load_speech,
    source_digest,
)
from laser_hf.data.files import AUDIO_SUFFIXES, cache_folder
from laser_hf.errors import LaserError

RATE = 16_000


@pytest.fixture
def kept(monkeypatch):
    """Listings of more than two utterances are kept, as soon as they are made."""
    monkeypatch.setattr(listing, "ROWS", 2)
    monkeypatch.setattr(listing, "FRESH", 0)


def rows(speech) -> list[dict]:
    return [dict(row) for row in speech]


@pytest.fixture
def no_walk(monkeypatch):
    """From when it is called, looking into a folder is an error."""
    return lambda: monkeypatch.setattr(listing, "walk_audio", None)


@pytest.mark.usefixtures("kept")
def test_a_kept_listing_is_the_fresh_one(libri, no_walk, monkeypatch):
    monkeypatch.setattr(listing, "ROWS", 20)
    fresh = load_speech(libri, "train")
    assert not list(cache_folder().glob("listing*"))
    monkeypatch.setattr(listing, "ROWS", 2)
    first = load_speech(libri, "train")
    no_walk()
    again = load_speech(libri, "train")
    assert rows(first) == rows(again) == rows(fresh)
    assert first.features == again.features == fresh.features
    assert first._fingerprint == again._fingerprint
    assert [path.suffix for path in sorted(cache_folder().glob("listing*"))] in (
        [".arrow", ".json"],
        [".json", ".arrow"],
    )
    assert rows(pickle.loads(pickle.dumps(again))) == rows(fresh)
    assert [row["id"] for row in load_speech(libri, "train", streaming=True)] == fresh["id"][:]


CHANGES = {
    "a file more": lambda tree: shutil.copy(tree / "10/20/10-20-0000.flac", tree / "10/20/10-20-0009.flac"),
    "a file less": lambda tree: (tree / "10/21/10-21-0001.ogg").unlink(),
    "another name": lambda tree: (tree / "9/5/9-5-0001.wav").rename(tree / "9/5/9-5-0002.wav"),
    "a folder more": lambda tree: shutil.copytree(tree / "9", tree / "11"),
    "a folder less": lambda tree: shutil.rmtree(tree / "9"),
    "another text": lambda tree: (tree / "10/20/10-20.trans.txt").write_text("10-20-0000 OTHER\n"),
    "a text less": lambda tree: (tree / "10/20/10-20.trans.txt").unlink(),
    "a text more": lambda tree: (tree / "9/5/9-5.trans.txt").write_text("9-5-0000 NEW\n"),
}


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_folder_is_noticed(libri, change, monkeypatch):
    before, times = rows(load_speech(libri, "train")), os.stat(libri / "train" / "10" / "20")
    time.sleep(0.02)  # a tick of the file system's clock
    CHANGES[change](libri / "train")
    os.utime(libri / "train" / "10" / "20", ns=(times.st_atime_ns, times.st_mtime_ns))  # as tar and rsync set it
    after = rows(load_speech(libri, "train"))
    monkeypatch.setattr(listing, "ROWS", 20)
    monkeypatch.setattr(listing, "cache_folder", lambda: Path("nowhere"))
    assert after == rows(load_speech(libri, "train"))
    assert after != before


@pytest.mark.usefixtures("kept")
def test_a_folder_that_has_just_changed_is_listed_again(libri, monkeypatch):
    """It may change once more within the same tick of the clock, which no time of change would tell."""
    monkeypatch.setattr(listing, "FRESH", 3600 * 10**9)
    load_speech(libri, "train")
    walked, walk = [], listing.walk_audio
    monkeypatch.setattr(listing, "walk_audio", lambda *given: walked.append(given[0]) or walk(*given))
    load_speech(libri, "train")
    assert walked == [str(libri / "train")]


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("damage", ["cut", "gone", "note", "empty note"])
def test_a_damaged_listing_is_made_anew(libri, damage):
    expected = rows(load_speech(libri, "train"))
    (table,), (note,) = cache_folder().glob("listing*.arrow"), cache_folder().glob("listing*.json")
    {
        "cut": lambda: table.write_bytes(table.read_bytes()[:-100]),
        "gone": table.unlink,
        "note": lambda: note.write_text("{"),
        "empty note": lambda: note.write_text("{}"),
    }[damage]()
    for _ in range(2):
        assert rows(load_speech(libri, "train")) == expected
    assert len(list(cache_folder().iterdir())) == 2


@pytest.mark.usefixtures("kept")
def test_errors_are_those_of_a_short_listing(libri, tmp_path, monkeypatch):
    shutil.copytree(libri / "train" / "10", libri / "train" / "copy" / "10")
    with pytest.raises(
        LaserError, match=r"/train/10/20/10-20-0000.flac and .*/copy/10/20/10-20-0000.flac have the same"
    ):
        load_speech(libri, "train")
    assert not list(cache_folder().iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(LaserError, match=r"cannot write to .*file/laser_hf.*HF_DATASETS_CACHE"):
        load_speech(libri, "train")


NAME = st.sampled_from(
    ["a", "b", "a.flac", "A.WAV", "a-b", "a b", "a.b.ogg", ".a.flac", "\u00e9.mp3", "b.flac", "a\tb.opus"]
)


@settings(max_examples=30)
@given(st.lists(st.lists(NAME, min_size=1, max_size=4), max_size=8))
def test_the_order_is_that_of_the_parts_of_paths(tmp_path_factory, trees):
    root = tmp_path_factory.mktemp("tree")
    for parts in trees:
        try:
            root.joinpath(*parts[:-1]).mkdir(parents=True, exist_ok=True)
            root.joinpath(*parts).touch()
        except OSError:  # a file of that name is there
            continue
    files = [path for path in root.rglob("*") if path.is_file() and path.name.lower().endswith(AUDIO_SUFFIXES)]
    shown = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    assert find_audio_files(root) == sorted(shown, key=lambda path: path.parts)


# ---- manifests ----


def pairs(speech, **options) -> PairDataset:
    return PairDataset(speech, PairTransform(SpeedPitch(), seed=5, **options), check_lengths=bool(options))


@pytest.fixture
def never_opened(monkeypatch):
    """From when it is called, reading a header is an error."""
    from laser_hf.data import pair_sets

    return lambda: monkeypatch.setattr(pair_sets, "audio_seconds", None)


@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("many", [True, False])
def test_a_manifest_trains_as_its_folder(
    libri, tmp_path_factory, suffix, inside, many, monkeypatch, never_opened, capsys
):
    monkeypatch.setattr(listing, "ROWS", 2 if many else 20)
    (libri / "train" / "9" / "5" / "9-5-0007.wav").write_bytes(b"no audio")
    folder = load_speech(libri, "train")
    digest = source_digest(libri, "train")
    expected, lengths = pairs(folder).fingerprint(), pairs(folder, min_seconds=0.42)
    path = (libri if inside else tmp_path_factory.mktemp("elsewhere")) / f"train{suffix}"
    listing.main([str(libri / "train"), "--output", str(path)])
    assert capsys.readouterr().out == f"{path}: 8 utterances, 0.0 hours\n"
    assert [entry.name for entry in path.parent.iterdir() if "part" in entry.name] == []
    never_opened()
    if inside:  # it moves with its files
        shutil.move(libri, libri.parent / "moved")
        path = libri.parent / "moved" / path.name
    found = load_speech(path)
    assert [dict(row, audio=0) for row in found.remove_columns(["samples", "bytes", "crc"])] == [
        dict(row, audio=0) for row in folder
    ]
    assert pairs(found).fingerprint() == expected
    assert source_digest(path) == digest
    assert pairs(found, min_seconds=0.42).seconds == lengths.seconds
    assert pairs(found)[0]["skip"] == ""
    assert "undecodable" in pairs(found)[7]["skip"]
    if inside:
        shutil.move(libri.parent / "moved", libri)


def test_a_file_that_no_longer_fits_its_manifest_is_named_when_it_is_read(libri, tmp_path, speech):
    listing.write_manifest(libri / "train", tmp_path / "m.tsv")
    found = pairs(load_speech(tmp_path / "m.tsv"))
    first, second = (libri / "train/10/20" / f"10-20-000{index}.flac" for index in range(2))
    soundfile.write(first, speech(0.9), RATE)
    with pytest.raises(LaserError, match=r"10-20-0000.flac has \d+ bytes, in the manifest \d+; .* laser-hf manifest"):
        found[0]
    second.unlink()
    assert "undecodable" in found[1]["skip"]


def test_a_manifest_without_checksums_has_its_headers_read(libri):
    listing.write_manifest(libri / "train", libri / "m.tsv")
    expected = pairs(load_speech(libri / "m.tsv")).fingerprint()
    columns = [line.split("\t") for line in (libri / "m.tsv").read_text().splitlines()]
    assert columns[0].pop() == "crc"
    rows = [columns[0], *(row[:-1] for row in columns[1:])]
    (libri / "older.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    assert pairs(load_speech(libri / "older.tsv")).fingerprint() == expected


def test_a_manifest_of_paths_alone(libri):
    path = libri / "some.tsv"
    path.write_text(
        "note\tpath\nx\ttrain/9/5/9-5-0001.wav\ny\ttrain/10/21/10-21-0000.ogg\nz\tdev/30/../30/40/a.b.flac\n"
    )
    found = load_speech(path)
    assert found["id"][:] == ["9-5-0001", "10-21-0000", "dev/30/../30/40/a.b"]
    assert found["speaker"][:] == ["9", "10", None]
    assert set(found.column_names) == {"id", "audio", "speaker"}
    assert pairs(found).seconds == [*pairs(load_speech(libri, "train").select([6, 3])).seconds, 0]
    path.write_text(
        "path\tid\tspeaker\ttext\n\u00e9/'a'.wav\tone\tann\t\u00c9T\u00c9\nhttps://host/b.wav\ttwo\t\t\n", "utf-8-sig"
    )
    (one, two) = load_speech(path)
    assert one == {
        "id": "one",
        "audio": {"bytes": None, "path": f"{libri}/\u00e9/'a'.wav"},
        "speaker": "ann",
        "text": "\u00c9T\u00c9",
    }
    assert two["audio"]["path"] == "https://host/b.wav"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Empty CSV file"),
        (b"file\tsamples\na.wav\t1\n", "a row has no path; a manifest is a table"),
        (b"path\tsamples\na.wav\tmany\n", "invalid value 'many'"),
        (b"path\tsamples\na.wav\n", "Expected 2 columns, got 1"),
        (b"path\ncaf\xe9.wav\n", "UTF8"),
        (b"path\na.wav\nb.wav\na.wav\n", r"/a.wav and .*/a.wav have the same id 'a'"),
    ],
)
def test_what_is_wrong_with_a_manifest(tmp_path, text, message):
    (tmp_path / "m.tsv").write_bytes(text)
    with pytest.raises(LaserError, match=rf"m.tsv.*{message}"):
        load_speech(tmp_path / "m.tsv")


def test_what_a_manifest_cannot_be(libri, tmp_path, speech):
    listing.write_manifest(libri / "dev", tmp_path / "m.tsv")
    with pytest.raises(LaserError, match="no split 'train'; leave the split out"):
        load_speech(tmp_path / "m.tsv", "train")
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    with pytest.raises(LaserError, match=r"m.parquet cannot be read.*a manifest is"):
        load_speech(tmp_path / "m.parquet")
    with pytest.raises(LaserError, match=r"m.csv is a file that is no manifest"):
        listing.write_manifest(libri, tmp_path / "m.csv")
    with pytest.raises(LaserError, match=r"there is no folder .*absent with audio"):
        listing.write_manifest(tmp_path / "absent", tmp_path / "m.tsv")
    with pytest.raises(LaserError, match=r"cannot write .*absent/m.tsv \(No such file"):
        listing.write_manifest(libri, tmp_path / "absent" / "m.tsv")
    soundfile.write(libri / "dev" / "a\tb.flac", speech(0.3), RATE)
    with pytest.raises(LaserError, match=r"m.tsv: .*a\tb.*\.parquet"):
        listing.write_manifest(libri / "dev", tmp_path / "m.tsv")
    listing.write_manifest(libri / "dev", tmp_path / "m.parquet")
    assert load_speech(tmp_path / "m.parquet")["id"][:] == ["30-40-0000", "a\tb"]
