"""Sources of speech: what is found, in which order, under which ids, and what is said when nothing is."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.conftest import SHA

import laser_hf
from laser_hf.data import load_speech
from laser_hf.errors import LaserError

TRAIN_IDS = ["10-20-0000", "10-20-0001", "10-20-0002", "10-21-0000", "10-21-0001", "9-5-0000", "9-5-0001"]


def parquet_bytes(rows: list[dict], **types: pa.DataType) -> bytes:
    """A Parquet file as the Hub stores audio: `audio` is `{"bytes", "path"}`."""
    audio = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.Table.from_pylist(rows, schema=pa.schema({"audio": audio, **types}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("streaming", [False, True])
def test_librispeech_tree(libri, streaming):
    rows = list(load_speech(libri, "train", streaming=streaming))
    assert [row["id"] for row in rows] == TRAIN_IDS
    assert [row["speaker"] for row in rows] == ["10"] * 5 + ["9"] * 2
    assert rows[0]["text"] == "UTTERANCE NUMBER 1"
    assert rows[-1]["text"] is None  # its chapter has no transcript
    assert rows[0]["audio"] == {"bytes": None, "path": str(libri / "train/10/20/10-20-0000.flac")}


def test_whole_tree_and_unpacked_folder(libri, tmp_path):
    assert [row["id"] for row in load_speech(libri)] == ["30-40-0000", *TRAIN_IDS]
    (tmp_path / "outer").mkdir()
    shutil.move(libri / "train", tmp_path / "outer/LibriSpeech/train")
    assert load_speech(tmp_path / "outer", "train")["id"][:] == TRAIN_IDS


def test_nothing_is_decoded_up_front(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"not audio")
    assert load_speech(tmp_path)["id"][:] == ["broken"]


def test_folder_of_audio_files(tmp_path, speech, encoded):
    for name in ("b/two.flac", "a.WAV", "b/one.two.flac", ".hidden/x.flac", "b/.y.flac", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(speech()))
    dataset = load_speech(str(tmp_path))
    assert dataset["id"][:] == ["a", "b/one.two", "b/two"]
    assert set(dataset.column_names) == {"id", "audio"}


def test_links_are_followed_once(tmp_path, libri):
    (libri / "train/10/20/back").symlink_to(libri / "train")
    assert sorted(load_speech(libri, "train")["id"]) == sorted(TRAIN_IDS)


def test_saved_dataset(libri, tmp_path):
    original = load_speech(libri, "train")
    original.save_to_disk(tmp_path / "one")
    assert load_speech(tmp_path / "one")["id"][:] == TRAIN_IDS
    datasets.DatasetDict({"a": original, "b": load_speech(libri, "dev")}).save_to_disk(tmp_path / "two")
    assert load_speech(tmp_path / "two", "b")["id"][:] == ["30-40-0000"]
    assert [row["id"] for row in load_speech(tmp_path / "two", "a", streaming=True)] == TRAIN_IDS
    with pytest.raises(LaserError, match=r"split must be named.* a, b\."):
        load_speech(tmp_path / "two")
    with pytest.raises(LaserError, match=r"no split 'c'.* a, b\."):
        load_speech(tmp_path / "two", "c")


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_a_parquet_dataset(tmp_path, speech, encoded, streaming):
    data = encoded(speech())
    numbers = {"utterance_id": pa.int64(), "speaker_id": pa.int64(), "sentence": pa.string(), "x": pa.int8()}
    rows = [
        {
            "audio": {"bytes": data, "path": f"{i}.flac"},
            "utterance_id": 70 + i,
            "speaker_id": 5,
            "sentence": "hm",
        }
        for i in range(3)
    ]
    (tmp_path / "named").mkdir()
    (tmp_path / "named/train-00000.parquet").write_bytes(parquet_bytes(rows, **numbers))
    found = list(load_speech(tmp_path / "named", streaming=streaming))
    assert [(row["id"], row["speaker"], row["text"]) for row in found] == [(f"7{i}", "5", "hm") for i in range(3)]
    assert found[0]["audio"]["bytes"] == data
    assert set(found[0]) == {"id", "speaker", "text", "audio"}

    # Without a column of ids: the stored file names.
    (tmp_path / "files").mkdir()
    (tmp_path / "files/train.parquet").write_bytes(parquet_bytes([{"audio": row["audio"]} for row in rows]))
    assert [row["id"] for row in load_speech(tmp_path / "files", streaming=streaming)] == ["0", "1", "2"]

    # Without any name: running numbers, or in a stream the audio itself.
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/train.parquet").write_bytes(parquet_bytes([{"audio": {"bytes": data, "path": None}}]))
    (found,) = load_speech(tmp_path / "bare", streaming=streaming)
    assert len(found["id"]) == (16 if streaming else 8)

    with pytest.raises(LaserError, match=r"no audio column 'sound'.*exist: audio, utterance_id, sp"):
        load_speech(tmp_path / "named", audio_column="sound", streaming=streaming)
    with pytest.raises(LaserError, match=r"'speaker_id' holds .*int64.* not audio"):
        load_speech(tmp_path / "named", audio_column="speaker_id", streaming=streaming)
    with pytest.raises(LaserError, match=r"no split 'dev'.*exist: train\."):
        load_speech(tmp_path / "named", "dev", streaming=streaming)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_stored_paths_lead_nowhere_else(tmp_path, speech, encoded, streaming):
    own = tmp_path / "set"
    (own / "audio").mkdir(parents=True)
    (own / "audio" / "a.raw").write_bytes(encoded(speech()))
    (tmp_path / "b.flac").write_bytes(encoded(speech()))
    (own / "audio" / "link").symlink_to(tmp_path / "b.flac")

    def load(path, data=None):
        rows = [{"audio": {"bytes": data, "path": str(path)}}] * 2
        (own / "train.parquet").write_bytes(parquet_bytes(rows))
        return list(load_speech(own, streaming=streaming))

    assert load(own / "audio" / "a.raw")[0]["audio"]["path"] == str(own / "audio" / "a.raw")
    repository = f"hf://datasets/{own}@main/a.flac"
    elsewhere = [tmp_path / "b.flac", own / "audio" / "link", own / ".." / "b.flac", "http://127.0.0.1:9/a.flac"]
    elsewhere += [(tmp_path / "b.flac").as_uri(), "hf://datasets/some/body@main/a.flac", "x.flac", f"hf://{own}/a"]
    elsewhere += [
        "zip://a.flac::http://127.0.0.1:9/a.zip",
        "zip://hf://datasets/x::ftp://127.0.0.1/a",
        repository + "x::http://x",
    ]
    for path in elsewhere:
        with pytest.raises(LaserError, match=r"stored path .* is not in the data set's folder or repository"):
            load(path)
        assert load(path, encoded(speech()))[0]["audio"]["bytes"]  # then it is only a name


def test_saved_sets_hold_their_audio_or_name_their_own_files(tmp_path, libri):
    load_speech(libri, "train").save_to_disk(tmp_path / "saved")
    assert load_speech(tmp_path / "saved")[0]["audio"]["bytes"] == (libri / "train/10/20/10-20-0000.flac").read_bytes()
    own = tmp_path / "named" / "a.flac"
    for path in (own, libri / "dev/30/40/30-40-0000.flac", "http://127.0.0.1:9/a.flac"):
        datasets.Dataset.from_dict({"id": ["a"], "audio": [str(path)]}).save_to_disk(tmp_path / "named")
        if path == own:
            assert load_speech(tmp_path / "named")[0]["audio"]["path"] == str(own)
        else:
            with pytest.raises(LaserError, match=r"stored path .* cast the column to datasets.Audio"):
                load_speech(tmp_path / "named")


def test_names_that_are_not_utf8_are_named(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        (tmp_path / name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(LaserError, match=r"the file name b'.*caf\\xe9.wav' is not UTF-8; rename"):
        load_speech(tmp_path)
    (tmp_path / name).rename(tmp_path / "caf\u00e9.wav")
    assert load_speech(tmp_path)["id"][:] == ["caf\u00e9"]


def test_transcripts_as_other_systems_leave_them(libri):
    path = libri / "train/10/20/10-20.trans.txt"
    lines = [f"10-20-000{index} UTT\u00c9RANCE {index}" for index in range(3)]
    for encoding, line_end in (("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-8", "\r")):
        path.write_bytes(line_end.join(lines).encode(encoding))
        assert load_speech(libri, "train")["text"][:3] == [line.partition(" ")[2] for line in lines]
    for encoding in ("latin-1", "utf-16", "utf-16-le"):
        path.write_bytes("\n".join(lines).encode(encoding))
        with pytest.raises(LaserError, match=r"10-20.trans.txt, line 1: not UTF-8"):
            load_speech(libri, "train")


def test_what_is_wrong_with_a_folder(libri, tmp_path):
    with pytest.raises(LaserError, match=r"no split 'trian'.*exist: dev, train\."):
        load_speech(libri, "trian")
    with pytest.raises(LaserError, match=r"no folder .*absent/x/y.*folder of speech.*laser_hf/demo/speech"):
        load_speech(tmp_path / "absent/x/y")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(LaserError, match=r"a\.txt is a file that is no manifest: .*\.tsv.*path"):
        load_speech(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LaserError, match=r"no audio files \(.flac .wav .ogg .opus .mp3\) in .*empty"):
        load_speech(tmp_path / "empty")
    shutil.copytree(libri / "dev", libri / "copy")
    with pytest.raises(LaserError, match=r"have the same id '30-40-0000'; name one split"):
        load_speech(libri)
    with pytest.raises(LaserError, match=r"no audio column 'sound'"):
        load_speech(libri, "train", audio_column="sound")


# Each line of input is a call of load_speech, each line of output what came of it.
HUB_SCRIPT = """
import json, sys, time, types
waits = []
time.sleep = waits.append  # what load_dataset would wait between its tries
package = sys.modules["laser_hf"] = types.ModuleType("laser_hf")  # the encoders are not needed here
package.__path__, package.__version__ = [sys.argv[1]], ""
from laser_hf.data.speech import load_speech, source_digest
from laser_hf.errors import LaserError
for line in sys.stdin:
    waits.clear()
    try:
        options = json.loads(line)
        rows = [dict(row, audio=len(row["audio"]["bytes"])) for row in load_speech(**options)]
        digest = {"digest": source_digest(options["source"])} if options.get("streaming") else {}
        print(json.dumps({"rows": rows, **digest}), flush=True)
    except LaserError as error:
        cause = type(error.__cause__).__name__
        print(json.dumps({"error": str(error), "cause": cause, "waited": sum(waits)}), flush=True)
"""


@pytest.fixture
def load_in_a_process(hub, tmp_path):
    """`load_speech` in a process of its own: the Hub's address is read when huggingface_hub is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "no_proxy": "*"}
    command = [sys.executable, "-c", HUB_SCRIPT, str(Path(laser_hf.__file__).parent)]
    with subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def call(**options) -> dict:
            process.stdin.write(json.dumps(options) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield call
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.slow
def test_dataset_on_the_hub(hub, load_in_a_process, speech, encoded):
    types = {"id": pa.string(), "speaker_id": pa.int64(), "text": pa.string(), "file": pa.string()}
    data = encoded(speech())
    expected = []
    for shard in range(2):
        rows = [
            {
                "audio": {"bytes": data, "path": f"{i}.flac"},
                "id": f"{shard}-{i}",
                "speaker_id": i,
                "text": "A",
            }
            for i in range(2)
        ]
        hub.files[f"clean/train.100-{shard:05d}-of-00002.parquet"] = parquet_bytes(rows, **types)
        expected += [{"id": f"{shard}-{i}", "speaker": str(i), "text": "A", "audio": len(data)} for i in range(2)]
    hub.files["README.md"] = (
        b"---\nconfigs:\n- config_name: clean\n  data_files:\n  - split: train.100\n    path: clean/train.100-*\n---\n"
    )
    wanted = {"source": "nobody/speech", "split": "train.100", "name": "clean"}
    for streaming, digest in ((True, {"digest": SHA}), (False, {})):
        assert load_in_a_process(**wanted, streaming=streaming) == {"rows": expected, **digest}, hub.seen
    found = load_in_a_process(**(wanted | {"split": None}))
    assert found == {"rows": expected}
    found = load_in_a_process(**(wanted | {"split": "train.360"}))
    assert "no split 'train.360'. Splits that exist: train.100." in found["error"]
    found = load_in_a_process(**(wanted | {"name": "other"}))
    assert "'other' not found" in found["error"]
    assert "clean" in found["error"]
    found = load_in_a_process(source="nobody/else", split="train")
    assert "'nobody/else' is neither a folder here nor a dataset" in found["error"]
    assert found["cause"] == "RepositoryNotFoundError"

    # The Hub goes away: said at once, where load_dataset alone would retry for 24 s.
    hub.shutdown()
    hub.server_close()
    found = load_in_a_process(source="nobody/new", split="train")
    assert f"the Hub at {hub.url} cannot be reached" in found["error"]
    assert found["cause"] == "ConnectError"
    assert found["waited"] < 5
    found = load_in_a_process(**wanted, streaming=True)
    assert "cannot be reached" in found["error"]


@pytest.mark.parametrize("streaming", [False, True])
def test_offline_mode_is_said_at_once(monkeypatch, streaming):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LaserError, match=r"HF_HUB_OFFLINE.*folder of speech.*laser_hf/demo/speech") as caught:
        load_speech("nobody/speech", "train", streaming=streaming)
    assert isinstance(caught.value.__cause__, huggingface_hub.errors.OfflineModeIsEnabled)
