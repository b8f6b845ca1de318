"""What strangers do with a published encoder, by its id and without laser_hf: load, extract, fine-tune, evaluate.

The models come from a Hub on 127.0.0.1 through the real client. All that needs transformers happens in one process,
because importing it takes most of the time; the published evaluation script runs at its end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SHARED_SPEECH, make_model, make_waveform
from hub_server import HubServer
from huggingface_hub import ModelCard
from safetensors.torch import load as load_safetensors

from laser_hf.publishing import export_encoder
from laser_hf.publishing.upload import EVALUATION_SCRIPTS

pytestmark = pytest.mark.slow  # a process of its own that trains and evaluates
KINDS = ("hubert", "wavlm")
SPEECH = REPOSITORY / "laser_hf" / "demo" / "speech" / "heldout"

_DRIVER = '''
import sys
sys.modules["laser_hf"] = None
import contextlib, io, json, re, runpy, shutil
from pathlib import Path
import numpy as np, soundfile, torch
from huggingface_hub import HfApi, hf_hub_download
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCTC, AutoProcessor, AutoTokenizer, pipeline, set_seed,
)

asked = json.loads(sys.argv[1])
seen = {"kinds": {}}
wave = np.load(asked["wave"])


def failure(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def example(repo, speech, output):
    """The Python text of examples/ctc_finetuning.md with other settings; returns its variables."""
    text = re.search(r"```python\\n(.*?)```", Path(asked["example"]).read_text(), re.DOTALL)[1]
    settings = {
        "MODEL, SPEECH, OUTPUT": (repo, speech, output),
        "TRAINING": {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "use_cpu": True},
    }
    for names, values in settings.items():
        text, count = re.subn(rf"(?m)^{names} = .*$", f"{names} = {values!r}", text)
        assert count == 1
    set_seed(0)
    variables = {"__name__": "example"}
    exec(compile(text, "ctc_finetuning.md", "exec"), variables)
    return variables


for kind in asked["kinds"]:
    repo = f"org/{kind}-laser"
    found = seen["kinds"][kind] = {}
    model, info = AutoModel.from_pretrained(repo, output_loading_info=True)
    extractor = AutoFeatureExtractor.from_pretrained(repo)
    found["class"] = type(model).__name__
    found["loading"] = {k: sorted(v) for k, v in info.items() if k.endswith("keys")}
    found["spec_augment"] = [model.config.apply_spec_augment, model.config.layerdrop]
    with torch.no_grad():
        frames = model(**extractor(wave, sampling_rate=16000, return_tensors="pt")).last_hidden_state
    np.save(asked["out"] + f"/{kind}.npy", frames.numpy())

    # transformers 5 has this pipeline for text only: it hands what it gets to `tokenizer`. An extractor will do.
    found["pipeline alone"] = failure(lambda: pipeline("feature-extraction", model=repo))
    features = pipeline(
        "feature-extraction", model=repo, tokenizer=extractor, tokenize_kwargs={"sampling_rate": 16000}
    )
    found["pipeline equal"] = torch.equal(features(wave, return_tensors=True), frames)
    found["AutoProcessor"] = failure(lambda: AutoProcessor.from_pretrained(repo))

    # The steps of run_speech_recognition_ctc.py up to the model.
    folder = Path(asked["out"], f"{kind}-script")
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "|": 2, "[UNK]": 3, "[PAD]": 4}))
    config = AutoConfig.from_pretrained(repo)
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder),
        config=config if config.tokenizer_class is not None else None,
        tokenizer_type=config.model_type if config.tokenizer_class is None else None,
        unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="|",
    )
    found["tokenizer"] = [type(tokenizer).__name__, tokenizer.pad_token_id, tokenizer("ab a").input_ids]
    config.update({
        "feat_proj_dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0, "final_dropout": 0.0,
        "mask_time_prob": 0.05, "mask_time_length": 10, "mask_feature_prob": 0.0, "mask_feature_length": 10,
        "gradient_checkpointing": False, "layerdrop": 0.0, "ctc_loss_reduction": "mean", "ctc_zero_infinity": False,
        "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer), "activation_dropout": 0.0,
        "add_adapter": False,
    })
    ctc, info = AutoModelForCTC.from_pretrained(repo, config=config, output_loading_info=True)
    found["new in CTC"] = sorted(info["missing_keys"])
    found["unexpected in CTC"] = sorted(info["unexpected_keys"])
    encoder = getattr(ctc, kind)
    found["encoder untouched"] = all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in encoder.state_dict().items()
    )
    ctc.freeze_feature_encoder()
    found["frozen"] = not any(p.requires_grad for p in encoder.feature_extractor.parameters())
    extractor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    padded = processor.pad([{"input_values": wave}, {"input_values": wave[:9000]}], padding=True, return_tensors="pt")
    labels = processor.pad(labels=[{"input_ids": [0, 1]}, {"input_ids": [1]}], padding=True, return_tensors="pt")
    found["pads"] = [list(padded.input_values.shape), labels["attention_mask"].tolist()]

    # The program of the documentation, to the end, and what it makes on the Hub.
    output = asked["out"] + f"/{kind}-ctc"
    run = example(repo, asked["speech"], output)
    trained = run["model"]
    after = getattr(trained, kind).state_dict()
    found["steps"] = run["trainer"].state.global_step
    found["loss"] = run["trainer"].state.log_history[-1]["train_loss"]
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, model.state_dict()[name])}
    found["moved front-end"] = sorted(name for name in moved if name.startswith("feature_extractor"))
    found["moved layers"] = sorted({n.split(".")[2] for n in moved if n.startswith("encoder.layers.")})
    api = HfApi()
    api.create_repo(f"org/{kind}-laser-ctc")
    api.upload_folder(repo_id=f"org/{kind}-laser-ctc", folder_path=output, ignore_patterns=["*.bin", "checkpoint-*/*"])
    loaded = AutoModelForCTC.from_pretrained(f"org/{kind}-laser-ctc").eval()
    processor = AutoProcessor.from_pretrained(f"org/{kind}-laser-ctc")
    found["said"] = []
    for path in asked["utterances"]:
        samples, rate = soundfile.read(path, dtype="float32")
        with torch.no_grad():
            logits = loaded(processor(samples, sampling_rate=rate, return_tensors="pt").input_values).logits
        found["said"].append(processor.batch_decode(logits.argmax(-1))[0])

if asked["real speech"]:
    run = example("org/hubert-laser", asked["real speech"], asked["out"] + "/real")
    seen["real"] = [run["trainer"].state.log_history[-1]["train_loss"], len(run["utterances"])]
for name in ("eval_ctc.py", "eval_requirements.txt"):
    shutil.copy(hf_hub_download("org/hubert-laser", name), asked["out"])
script = asked["out"] + "/eval_ctc.py"
sys.argv = [script, "--model", "org/wavlm-laser-ctc", *asked["evaluation"]]
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    runpy.run_path(script, run_name="__main__")
seen["evaluation"] = printed.getvalue()
seen["laser_hf"] = [name for name in sys.modules if name.startswith("laser_hf.")]
Path(asked["out"], "seen.json").write_text(json.dumps(seen))
'''


def published_files(kind: str, folder: Path) -> dict[str, bytes]:
    """An exported encoder and the evaluation scripts, as `push_to_hub.py` uploads them."""
    model = make_model(kind, apply_spec_augment=True, layerdrop=0.05)
    export_encoder(model, model.config, folder)
    scripts = REPOSITORY / "laser_hf" / "publishing"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["README.md"] = (Path(__file__).parent / "golden" / "laser.md").read_bytes()
    return {**files, **{name: (scripts / name).read_bytes() for name in EVALUATION_SCRIPTS}}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The Hub, the folder that the driver wrote to, and what it saw."""
    folder = tmp_path_factory.mktemp("interoperability")
    out = folder / "out"
    out.mkdir()
    np.save(folder / "wave.npy", make_waveform(1.0))
    utterances = sorted(SPEECH.glob("*/*/*.opus"))[:4]
    with HubServer() as hub:
        for kind in KINDS:
            hub.create(f"org/{kind}-laser", published_files(kind, folder / kind))
        asked = {
            "kinds": KINDS,
            "wave": str(folder / "wave.npy"),
            "out": str(out),
            "example": str(REPOSITORY / "examples" / "ctc_finetuning.md"),
            "speech": str(SPEECH / "v17"),
            "utterances": [str(path) for path in utterances],
            "evaluation": [
                "--data",
                str(SPEECH),
                "--split",
                "v17",
                "--max_utterances",
                "4",
                "--output",
                "results.json",
            ],
            "real speech": str(SHARED_SPEECH / "heldout-clean-5") if SHARED_SPEECH.is_dir() else None,
        }
        environment = {**os.environ, **hub.environment(folder / "home"), "HF_TOKEN": "hf_test"}
        command = [sys.executable, "-c", _DRIVER, json.dumps(asked)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        yield hub, folder, json.loads((out / "seen.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_loads_and_extracts_by_id(published, kind):
    _, folder, seen = published
    found = seen["kinds"][kind]
    assert found["class"] == {"hubert": "HubertModel", "wavlm": "WavLMModel"}[kind]
    assert found["loading"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    assert found["spec_augment"] == [True, 0.05]
    with torch.no_grad():
        expected = make_model(kind)(torch.tensor(make_waveform(1.0))[None]).last_hidden_state
    np.testing.assert_allclose(np.load(folder / "out" / f"{kind}.npy"), expected.numpy(), rtol=1e-5, atol=1e-5)
    # As documented: the pipeline wants to be given the extractor, and an encoder has no processor.
    assert found["pipeline equal"]
    assert "TypeError" in found["pipeline alone"] or "ValueError" in found["pipeline alone"]
    assert found["AutoProcessor"]
    assert seen["laser_hf"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_standard_ctc_script_finds_what_it_needs(published, kind):
    found = published[2]["kinds"][kind]
    assert found["tokenizer"] == ["Wav2Vec2CTCTokenizer", 4, [0, 1, 2, 0]]
    assert found["new in CTC"] == ["lm_head.bias", "lm_head.weight"]
    assert found["unexpected in CTC"] == []
    assert found["encoder untouched"]
    assert found["frozen"]
    assert found["pads"] == [[2, 16000], [[1, 1], [1, 0]]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_ctc_model_has_a_card(published, kind):
    card = ModelCard(published[0].files(f"org/{kind}-laser-ctc")["README.md"].decode())
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == (f"org/{kind}-laser", "finetune")
    assert (data["license"], data["language"]) == ("apache-2.0", ["en"])
    assert data["pipeline_tag"] == "automatic-speech-recognition"
    assert "3 updates). Not evaluated" in card.text


@pytest.mark.parametrize("kind", KINDS)
def test_documented_program_trains(published, kind):
    found = published[2]["kinds"][kind]
    assert found["steps"] == 3
    assert 0 < found["loss"] < 1000
    assert found["moved front-end"] == []
    assert found["moved layers"] == ["0", "1", "2"]


def test_documented_program_trains_on_real_speech(published, shared_speech):
    loss, utterances = published[2]["real"]
    assert 0 < loss < 1000
    assert utterances == sum(len(p.read_text().splitlines()) for p in shared_speech.glob("heldout-clean-5/*/*/*.txt"))


def test_only_safetensors_and_no_code_to_load(published):
    hub, _, _ = published
    for repo in hub.repositories:
        files = hub.files(repo)
        assert "model.safetensors" in files
        assert not [
            name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"))
        ]
        # A pickle, whatever it is called, starts with its protocol or as a zip archive.
        assert not [name for name, data in files.items() if re.match(rb"\x80[\x02-\x05]|PK\x03\x04", data)]
        assert all(tensor.isfinite().all() for tensor in load_safetensors(files["model.safetensors"]).values())
        for name in files:
            if name.endswith(".json"):
                assert b"auto_map" not in files[name], name
        # Python that a stranger may run by hand, never something that from_pretrained would import.
        assert [name for name in files if name.endswith(".py")] in ([], ["eval_ctc.py"])


def edit_distance(reference: list, hypothesis: list) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, said in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != said))
    return row[-1]


def test_published_script_evaluates_the_published_ctc_model(published):
    hub, folder, seen = published
    script = folder / "out" / "eval_ctc.py"
    assert script.read_bytes() == (REPOSITORY / "laser_hf" / "publishing" / "eval_ctc.py").read_bytes()
    assert "WER" in seen["evaluation"]
    record = json.loads((folder / "results.json").read_text())
    lines = (SPEECH / "v17" / "s1" / "v17-s1.trans.txt").read_text().lower().splitlines()[:4]
    references = [line.split(maxsplit=1)[1] for line in lines]
    said = [" ".join(text.replace("[UNK]", "?").lower().split()) for text in seen["kinds"]["wavlm"]["said"]]
    for metric, cut in (("wer", str.split), ("cer", list)):
        errors = sum(edit_distance(cut(r), cut(h)) for r, h in zip(references, said, strict=True))
        value = next(entry["value"] for entry in record["metrics"] if entry["metric"] == metric)
        assert value == pytest.approx(100 * errors / sum(len(cut(r)) for r in references))
    assert (record["task"], record["model"], record["split"]) == ("ctc", "org/wavlm-laser-ctc", "v17")
    assert record["model_revision"] == hub.repositories["org/wavlm-laser-ctc"].at("main").oid
    assert record["data"]["utterances"] == 4
    assert record["hardware"]["cores"]
    assert record["versions"]["transformers"]
