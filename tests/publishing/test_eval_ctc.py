"""The evaluation script that is published beside a model: its numbers, its sources of speech, and what it refuses."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from conftest import REPOSITORY, make_model, make_waveform
from safetensors.torch import load_file, save_file
from transformers import HubertForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

from laser_hf.__main__ import main as laser_hf
from laser_hf.errors import LaserError
from laser_hf.publishing import eval_ctc
from laser_hf.records import read_record, tensors_digest
from laser_hf.superb.__main__ import main as superb

TEXTS = {"1-2-0000": "THE CAT SAT", "1-2-0001": "A BAD ACT", "1-2-0002": "SEED", "3-4-0000": "EAST BEACH"}
LETTERS = ["[PAD]", "[UNK]", "|", *"ABCDEHST"]
PHONES = ["[PAD]", "[UNK]", "AH", "AE", "B", "K", "T", "S", "IY", "D"]


def write_tree(root: Path, texts: dict[str, str], seconds: float = 0.4, seed: int = 0) -> Path:
    """A LibriSpeech tree; utterances of different lengths, but for two of the same."""
    for index, (name, text) in enumerate(texts.items()):
        speaker, chapter, _ = name.split("-")
        folder = root / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        length = seconds + 0.1 * max(index - 1, 0)
        soundfile.write(folder / f"{name}.flac", make_waveform(length, seed=seed + index), 16_000)
        with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
            file.write(f"{name} {text}\n")
    return root


def save_ctc_model(folder: Path, vocabulary: list[str]) -> str:
    """A tiny random model that writes something else for every utterance."""
    base = make_model(vocab_size=len(vocabulary), pad_token_id=0)
    torch.manual_seed(3)
    model = HubertForCTC(base.config)
    torch.nn.init.normal_(model.lm_head.weight, std=3)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), pad_token="[PAD]", unk_token="[UNK]", bos_token=None, eos_token=None
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return save_ctc_model(tmp_path_factory.mktemp("letters"), LETTERS)


@pytest.fixture(scope="module")
def phones(tmp_path_factory):
    return save_ctc_model(tmp_path_factory.mktemp("phones"), PHONES)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    write_tree(root / "test", TEXTS)
    return root


def run(model: str, data: Path | str, *options: str, split: str | None = "test") -> dict:
    argv = ["--model", model, "--data", str(data), "--device", "cpu", *options]
    return eval_ctc.evaluate(eval_ctc.parse(argv + (["--split", split] if split else [])))


def refused(model: str, data: Path | str, *options: str, split: str | None = "test") -> str:
    with pytest.raises(eval_ctc.EvaluationError) as caught:
        run(model, data, *options, split=split)
    return str(caught.value)


def greedy(model: str, vocabulary: list[str], speech: Path, texts=TEXTS) -> list[list[str]]:
    """What the model says to each utterance, decoded here by hand."""
    network, said = HubertForCTC.from_pretrained(model).eval(), []
    for name in texts:
        speaker, chapter, _ = name.split("-")
        samples, _ = soundfile.read(speech / "test" / speaker / chapter / f"{name}.flac", dtype="float32")
        with torch.no_grad():
            path = network(torch.tensor(samples)[None]).logits[0].argmax(-1).tolist()
        said.append([vocabulary[n] for n, before in zip(path, [None, *path], strict=False) if n not in (before, 0)])
    return said


def errors(reference: list, hypothesis: list) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, found in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != found))
    return row[-1]


def rate(references: list[list], hypotheses: list[list]) -> float:
    total = sum(errors(r, h) for r, h in zip(references, hypotheses, strict=True))
    return 100 * total / sum(map(len, references))


def values(record: dict) -> dict[str, float]:
    return {metric["metric"]: metric["value"] for metric in record["metrics"]}


def test_rates_are_those_computed_by_hand(letters, speech, tmp_path):
    record = run(letters, speech, "--hypotheses", str(tmp_path / "said.tsv"))
    said = ["".join(units).replace("|", " ").replace("[UNK]", "?") for units in greedy(letters, LETTERS, speech)]
    said = [" ".join(text.lower().split()) for text in said]
    texts = [text.lower() for text in TEXTS.values()]
    assert len(set(said)) > 2  # else this would be a poor witness
    cuts = {"wer": str.split, "cer": list}
    expected = {kind: rate([cut(t) for t in texts], [cut(t) for t in said]) for kind, cut in cuts.items()}
    assert values(record) == pytest.approx(expected)
    assert record["reference_units"] == 9
    assert record["weights_sha256"] == tensors_digest(HubertForCTC.from_pretrained(letters).state_dict())
    assert {"command", "versions", "hardware", "written", "wall_seconds", "recipe"} <= record.keys()
    written = [line.split("\t") for line in (tmp_path / "said.tsv").read_text().splitlines()]
    assert [row[0] for row in written] == list(TEXTS)
    assert [row[2].replace("\ufffd", "?") for row in written] == said


def test_every_source_gives_the_same(letters, speech, tmp_path):
    expected = run(letters, speech)
    folder, rows = tmp_path / "folder" / "test", []
    folder.mkdir(parents=True)
    for name, text in TEXTS.items():
        speaker, chapter, _ = name.split("-")
        data = (speech / "test" / speaker / chapter / f"{name}.flac").read_bytes()
        (folder / f"{name}.flac").write_bytes(data)
        rows.append({"file_name": f"{name}.flac", "transcription": text, "id": name, "bytes": data})
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "transcription"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert run(letters, tmp_path / "folder")["metrics"] == expected["metrics"]
    # As on the Hub: stored bytes, and a schema that says they are audio.
    text = datasets.Value("string")
    features = datasets.Features({"id": text, "text": text, "audio": datasets.Audio(sampling_rate=16_000)})
    audio = pa.array([{"bytes": row["bytes"], "path": None} for row in rows], features.arrow_schema.field("audio").type)
    columns = {"id": pa.array(list(TEXTS)), "text": pa.array(list(TEXTS.values())), "audio": audio}
    data_set = datasets.Dataset(pa.table(columns), info=datasets.DatasetInfo(features=features))
    (tmp_path / "parquet").mkdir()
    data_set.to_parquet(tmp_path / "parquet" / "test-00000-of-00001.parquet")
    found = run(letters, tmp_path / "parquet")
    assert found["metrics"] == expected["metrics"]
    assert found["data"]["utterances"] == 4


def test_librispeech_on_the_hub_by_its_own_split_names(letters, speech, monkeypatch):
    asked = []

    def load(name, config, **options):
        asked.append((name, config, options["split"], options["revision"], options["streaming"]))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = "openslr/librispeech_asr"
    for split in ("test-clean", "dev-other", "train-clean-100", "validation", None):
        assert "no network" in refused(letters, hub, "--data_revision", "abc", split=split)
    assert [(config, split) for _, config, split, *_ in asked] == [
        ("clean", "test"), ("other", "validation"), ("clean", "train.100"), (None, "validation"), (None, "test"),
    ]  # fmt: skip
    assert {entry[3:] for entry in asked} == {("abc", True)}


def test_bad_utterances_are_skipped_and_counted(letters, speech, tmp_path):
    write_tree(tmp_path / "test", TEXTS)
    good, folder = run(letters, tmp_path), tmp_path / "test" / "5" / "6"
    folder.mkdir(parents=True)
    wave = make_waveform(0.5)
    bad = wave.copy()
    bad[100] = np.nan
    for name, samples in {"nan": bad, "silent": 0 * wave, "none": wave[:0], "short": wave[:300]}.items():
        soundfile.write(folder / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    (folder / "broken.flac").write_bytes(b"fLaC nothing")
    soundfile.write(folder / "unwritten.wav", wave, 16_000)
    names = ("nan", "silent", "none", "short", "broken", "lost")
    (folder / "5-6.trans.txt").write_text("".join(f"{name} A BAD ACT\n" for name in names) + "empty\n")
    record = run(letters, tmp_path)
    assert record["metrics"] == good["metrics"]
    assert record["data"]["skipped"] == {
        "no samples, digital silence, NaN or infinite samples, or a rate outside 4 to 384 kHz": [
            "nan",
            "none",
            "silent",
        ],
        "less than one frame of speech": ["short"],
        "no audio, or it cannot be decoded": ["broken", "lost"],
        "no transcript": ["empty", "unwritten"],
    }
    assert "no utterance" in refused(letters, tmp_path, split="test/5")


def test_other_rates_and_channels(letters, tmp_path):
    folder = tmp_path / "test" / "1" / "2"
    folder.mkdir(parents=True)
    time = np.arange(8_000) / 16_000
    wave = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    soundfile.write(folder / "1-2-0000.wav", np.stack([1.5 * wave, 0.5 * wave], axis=1), 16_000, subtype="FLOAT")
    faster = (0.3 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 48_000)).astype(np.float32)
    soundfile.write(folder / "1-2-0001.wav", faster, 48_000, subtype="FLOAT")
    (folder / "1-2.trans.txt").write_text("1-2-0000 A CAT\n1-2-0001 A CAT\n")
    data = run(letters, tmp_path)["data"]
    assert (data["utterances"], data["resampled"], data["averaged_channels"]) == (2, 1, 1)
    notes = eval_ctc.Counter()
    np.testing.assert_allclose(eval_ctc.decode_audio(folder / "1-2-0000.wav", 16_000, notes), wave, atol=1e-6)
    resampled = eval_ctc.decode_audio((folder / "1-2-0001.wav").read_bytes(), 16_000, notes)
    assert len(resampled) == 8_000
    np.testing.assert_allclose(resampled[200:-200], wave[200:-200], atol=1e-3)


@pytest.mark.slow
def test_phone_error_rate_and_unknown_words(phones, speech, tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("CAT K AE1 T\nCAT K AH0 T\nTHE\tAH0\nSAT S AE1 T\nSEED S IY1 D\nA AH0\nBAD B AE1 D\n\n")
    record = run(phones, speech, "--metric", "per", "--lexicon", str(lexicon))
    said = greedy(phones, PHONES, speech, [name for name in TEXTS if name in ("1-2-0000", "1-2-0002")])
    references = [["AH", "K", "AE", "T", "S", "AE", "T"], ["S", "IY", "D"]]
    assert values(record) == pytest.approx({"per": rate(references, said)})
    data = record["data"]
    assert (record["metric"], data["utterances"], record["reference_units"]) == ("per", 2, 10)
    assert data["skipped"]["a word that the lexicon lacks"] == ["1-2-0001", "3-4-0000"]
    assert data["words_not_in_lexicon"] == {"ACT": 1, "EAST": 1, "BEACH": 1}
    with_cmudict = run(phones, speech, "--metric", "per")
    assert with_cmudict["data"]["utterances"] == 4
    # Transcripts that are phones already.
    write_tree(tmp_path / "test", {"1-2-0000": "AH0 K AE1 T SIL S AE1 T", "1-2-0001": "s iy1 d"})
    assert run(phones, tmp_path, "--metric", "per", "--lexicon", "none")["reference_units"] == 10


def test_stress_is_compared_where_the_model_tells_it_apart(tmp_path):
    model = save_ctc_model(tmp_path, ["[PAD]", "[UNK]", "AE1", "AE0", "K", "T"])
    loaded = eval_ctc.Recogniser(eval_ctc.parse(["--model", model, "--data", "x", "--metric", "per"]))
    assert (loaded.phones, loaded.stress) == (True, True)
    assert eval_ctc.Transcripts(True, True, "none").reference("k ae1 SIL t") == "K AE1 T"
    assert eval_ctc.Transcripts(True, False, "none").reference("k ae1 SIL t") == "K AE T"


@pytest.mark.slow
def test_a_head_trained_on_a_bare_encoder(speech, tiny_encoder, tmp_path):
    assert "lacks lm_head.bias, lm_head.weight. For a bare encoder add --train_head" in refused(
        str(tiny_encoder), speech
    )
    texts = {"7-8-0000": "ACE", "7-8-0001": "BED", "7-8-0002": "HAT"}
    for split in ("train", "test"):  # the same speech in both, to see that the head learns
        write_tree(tmp_path / split, texts, 0.5)
    (tmp_path / "train" / "7" / "8" / "7-8-0003.flac").write_bytes(b"")
    with (tmp_path / "train" / "7" / "8" / "7-8.trans.txt").open("a") as file:
        file.write("7-8-0003 CAT\n")
    encoder, options = str(REPOSITORY / "laser_hf" / "demo" / "encoder"), ["--train_head", "train", "--head_steps"]
    assert values(run(encoder, tmp_path, *options, "1"))["wer"] == 100
    record = run(encoder, tmp_path, *options, "100")
    assert values(record) == {"wer": 0, "cer": 0}
    assert (record["protocol"], record["seed"], record["recipe"]["head_steps"]) == ("quick", 1337, 100)
    head = record["data"]["head_training"]
    assert (head["split"], head["utterances"]) == ("train", 3)
    assert head["skipped"] == {"no audio, or it cannot be decoded": ["7-8-0003"]}
    # The same seed, the same head; and phones instead of characters.
    halfway = [run(encoder, tmp_path, *options, "8")["metrics"] for _ in range(2)]
    assert halfway[0] == halfway[1]
    per = run(encoder, tmp_path, *options, "100", "--metric", "per")
    assert values(per)["per"] < 60


def test_utterances_for_the_head_are_drawn_alike(speech, tiny_encoder, monkeypatch):
    """Not the first ones, which would be one speaker."""
    drawn = Counter()

    def stop(rows, *_):
        drawn.update(name for name, _, _ in rows)
        return ()

    monkeypatch.setattr(eval_ctc, "read_data", lambda *_: ((index, None, None) for index in range(20)))
    monkeypatch.setattr(eval_ctc, "usable", stop)
    options = ["--model", "x", "--data", "x", "--train_head", "train", "--head_utterances", "5", "--seed"]
    for seed in range(2000):
        with pytest.raises(KeyError):  # nothing is left to train on
            eval_ctc.Recogniser.train(mock.Mock(), eval_ctc.parse([*options, str(seed)]), None)
    assert drawn.total() == 5 * 2000
    shares = np.array([drawn[index] for index in range(20)]) / 2000
    assert np.abs(shares - 0.25).max() < 0.05  # five standard deviations


def test_what_cannot_be_evaluated_is_said(letters, phones, speech, tmp_path):
    assert "dev has neither *.trans.txt (LibriSpeech) nor metadata.csv nor" in refused(letters, speech, split="dev")
    assert "taken for a data set" in refused(letters, speech / "no" / "where")
    assert "writes phones; give the other --metric" in refused(phones, speech)
    assert "writes characters; give the other --metric" in refused(letters, speech, "--metric", "per")
    assert "No such file or directory: 'nothing.txt'" in refused(
        phones, speech, "--metric", "per", "--lexicon", "nothing.txt"
    )
    assert "cannot be evaluated" in refused(str(tmp_path / "model"), speech)
    (tmp_path / "test").mkdir()
    soundfile.write(tmp_path / "test" / "a.wav", make_waveform(0.3), 16_000)
    assert "test has neither *.trans.txt" in refused(letters, tmp_path)
    (tmp_path / "test" / "metadata.csv").write_text("file_name,words\na.wav,A CAT\n")
    assert "or what --text_column names" in refused(letters, tmp_path)
    assert run(letters, tmp_path, "--text_column", "words")["data"]["utterances"] == 1


def test_command_line(letters, speech, tmp_path, monkeypatch, capsys):
    argv = ["--model", letters, "--data", str(speech), "--split", "test", "--max_utterances", "2"]
    monkeypatch.setattr(sys, "argv", ["/some/where/eval_ctc.py", *argv])
    eval_ctc.main([*argv, "--output", str(tmp_path / "new" / "results.json")])
    record = read_record(tmp_path / "new" / "results.json")
    assert (record["task"], record["protocol"]) == ("ctc", "quick")
    assert record["command"].startswith("python eval_ctc.py --model")
    assert "on 2 utterances of test (quick, not SUPERB)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"none has neither"):
        eval_ctc.main([*argv, "--split", "none"])
    with pytest.raises(SystemExit):
        eval_ctc.main([*argv, "--train_head", "test"])
    assert "are the same" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        eval_ctc.main(["--help"])
    assert "--train_head" in capsys.readouterr().out


def test_its_report_is_a_row_of_the_tables(letters, speech, tmp_path, capsys):
    report = tmp_path / "wer.json"
    eval_ctc.main(["--model", letters, "--data", str(speech), "--split", "test", "--output", str(report)])
    capsys.readouterr()
    superb(["table", str(report)])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {Path(letters).name}")]
    assert f"{read_record(report)['value']:.2f}" in row


def test_it_stands_alone():
    source = REPOSITORY / "laser_hf" / "publishing" / "eval_ctc.py"
    roots = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            roots |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(node.module.split(".")[0])
    required = (source.parent / "eval_requirements.txt").read_text().splitlines()
    required = {line.split(">")[0] for line in required if line and not line.startswith("#")}
    assert roots - set(sys.stdlib_module_names) == required


def variant(source: Path, folder: Path, change, form: str = "model.safetensors") -> str:
    """A copy of a model with other weights."""
    shutil.copytree(source, folder)
    state = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    if form.endswith(".bin"):
        torch.save(state, folder / form)
    else:
        save_file(state, folder / form, metadata={"format": "pt"})
    return str(folder)


def as_fp16(state):
    return {name: tensor.half() for name, tensor in state.items()}


def with_old_names(state):
    new = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for name, old in new.items():
        state = {key.replace(name, old): tensor for key, tensor in state.items()}
    assert any(name.endswith("weight_g") for name in state)
    return state


def without_top_layer(state):
    return {name: tensor for name, tensor in state.items() if "layers.2." not in name}


def with_foreign_prefix(state):
    return {f"foreign.{name}": tensor for name, tensor in state.items()}


def not_finite(state):
    name = next(name for name in state if name.endswith("layers.1.attention.k_proj.weight"))
    return {**state, name: state[name] * float("nan")}


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("change", [dict, with_old_names, as_fp16])
def test_checkpoints_of_all_ages(change, form, letters, speech, tmp_path):
    expected = run(letters, speech, "--max_utterances", "2")["metrics"]
    model = variant(Path(letters), tmp_path / "model", change, form)
    found = run(model, speech, "--max_utterances", "2")["metrics"]
    assert found == expected or change is as_fp16
    # The CTC model's own prefix, read as a bare encoder.
    head = ["--train_head", "./test", "--head_steps", "1", "--max_utterances", "1"]
    assert run(model, speech, *head)["data"]["utterances"] == 1


@pytest.mark.parametrize("head", [[], ["--train_head", "./test", "--head_steps", "1"]])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_top_layer, "it lacks .*encoder.layers.2.attention.k_proj.bias"),
        (with_foreign_prefix, "it lacks .*encoder.layer_norm.bias"),
        (not_finite, "its weights are not finite: .*layers.1.attention.k_proj.weight"),
    ],
)
def test_models_with_random_or_broken_layers_are_refused(change, said, head, letters, speech, tmp_path):
    told = refused(variant(Path(letters), tmp_path / "model", change), speech, *head)
    assert re.search(said, told)
    assert ("--train_head" in told.split("lacks")[-1]) is (not head and change is not not_finite)


def test_code_of_a_model_is_not_run(letters, speech, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "y")
    model = Path(variant(Path(letters), tmp_path / "model", dict))
    config = json.loads((model / "config.json").read_text())
    code = {"AutoConfig": "own.Config", "AutoModelForCTC": "own.Model"}
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (model / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    assert run(str(model), speech, "--max_utterances", "1")["data"]["utterances"] == 1
    (model / "config.json").write_text(json.dumps({**config, "auto_map": code, "model_type": "own"}))
    assert "custom code" in refused(str(model), speech)
    assert not (tmp_path / "ran").exists()


def test_texts_as_other_systems_leave_them(letters, phones, tmp_path):
    tree = write_tree(tmp_path / "speech" / "test", TEXTS)
    transcripts = tree / "1" / "2" / "1-2.trans.txt"
    text = transcripts.read_text()
    expected = run(letters, tmp_path / "speech")["metrics"]
    transcripts.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert run(letters, tmp_path / "speech")["metrics"] == expected
    for encoding, line in (("latin-1", 2), ("utf-16", 1)):
        transcripts.write_bytes(text.replace("BAD ACT", "CAFÉ").encode(encoding))
        assert f"{transcripts}, line {line}: not UTF-8" in refused(letters, tmp_path / "speech")
    transcripts.write_text(text)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_bytes("THE AH\nCAFÉ K AE\n".encode("latin-1"))
    per = ["--metric", "per", "--lexicon", str(lexicon)]
    assert f"{lexicon}, line 2: not UTF-8" in refused(phones, tmp_path / "speech", *per)
    table = tmp_path / "table"
    table.mkdir()
    (table / "metadata.csv").write_bytes("file_name,text\na.wav,CAFÉ\n".encode("latin-1"))
    assert f"{table / 'metadata.csv'}, line 2: not UTF-8" in refused(letters, table, split=None)
    (table / "metadata.csv").write_text("name,text\na.wav,A\n")
    assert "has the columns name, text; needed are audio (or file_name)" in refused(letters, table, split=None)


def test_nothing_outside_of_a_data_set_is_opened(letters, tmp_path):
    (tmp_path / "data").mkdir()
    for place in ("data/a.wav", "b.wav"):
        soundfile.write(tmp_path / place, make_waveform(0.4), 16_000)
    (tmp_path / "data" / "metadata.csv").write_text(f"file_name,text\na.wav,A\n../b.wav,A\n{tmp_path}/b.wav,A\n")
    data = run(letters, tmp_path / "data", split=None)["data"]
    assert data["utterances"] == 1
    assert len(data["skipped"]["no audio, or it cannot be decoded"]) == 2


@pytest.mark.parametrize("option", ["--max_utterances", "--head_utterances", "--head_steps"])
@pytest.mark.parametrize("value", ["0", "-3"])
def test_nothing_to_do_is_refused(option, value, capsys):
    with pytest.raises(SystemExit):
        eval_ctc.parse(["--model", "x", "--data", "x", option, value])
    assert "must be at least 1" in capsys.readouterr().err


def test_a_rate_that_no_recorder_has(letters, tmp_path):
    soundfile.write(tmp_path / "a.wav", make_waveform(0.4), 1)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.wav,A\n")
    assert "a rate outside 4 to 384 kHz" in refused(letters, tmp_path, split=None)


def test_without_scipy_it_does_not_start(letters, speech, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.signal", None)
    monkeypatch.delitem(sys.modules, "laser_hf.publishing.eval_ctc")
    with pytest.raises(LaserError, match="eval-ctc needs scipy: pip install"):
        laser_hf(["eval-ctc", "--model", letters, "--data", str(speech)])


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", None), ("AIFF", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_audio_that_is_cut_off_is_skipped_and_not_scored_as_whole(format, subtype):
    file = io.BytesIO()
    soundfile.write(file, make_waveform(2.0), 16_000, format=format, subtype=subtype)
    data, notes = file.getvalue(), Counter()
    assert len(eval_ctc.decode_audio(data, 16_000, notes)) == 32_000
    for part in (0.9, 0.5):
        with pytest.raises(ValueError, match=r"a file that is cut off|cannot be decoded"):
            eval_ctc.decode_audio(data[: int(part * len(data))], 16_000, notes)
    if format == "MP3":
        bare = data[data.index(data[:2], 200) :]  # without the frame that tells the length
        with pytest.raises(ValueError, match="tells no length"):
            eval_ctc.decode_audio(bare, 16_000, notes)
