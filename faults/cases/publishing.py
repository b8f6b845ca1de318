"""Kinds 1, 4, 5, 6 and 8 where models are published, converted and evaluated."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, HubertForCTC, Wav2Vec2CTCTokenizer

from ..kills import KillPlan
from ..lab import Fault, Lab, Outcome, digest, tones

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from hub_server import Fault as Answer
from hub_server import HubServer

REPO = "org/laser"
HOSTILE = "a`b\n# c <img src=x onerror=alert(1)> [d](javascript:alert(1)) e|f"
_UPDATE = ("--max_steps", "1", "--warmup_steps", "0", "--save_steps", "1")


def _known_base(lab: Lab) -> list[str]:
    """The lab's encoder under the name of the demo's, whose licence is known, and the options of a short training."""
    base = lab.path / "laser_hf" / "demo" / "encoder"
    if lab.encoder.is_dir():
        base.parent.mkdir(parents=True)
        lab.encoder.rename(base)
    return ["train", *lab.training(), "--model_name_or_path", "laser_hf/demo/encoder", *_UPDATE]


def _finished(lab: Lab) -> Path:
    """The folder of a finished run."""
    outcome = lab.run(*_known_base(lab))
    if outcome.status:
        raise RuntimeError(outcome.output)
    return lab.out


def _with_hub(lab: Lab, answers: Sequence[Answer], *argv: str | Path) -> Outcome:
    """A command against a Hub on this machine, whose commits are listed in `hub.json` afterwards."""
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        hub.attach(patch, lab.path / "hub-home")
        hub.failures = list(answers)
        outcome = lab.run(*argv)
        commits = {
            name: {
                branch: [sorted(commit.files) for commit in commits] for branch, commits in repository.branches.items()
            }
            for name, repository in hub.repositories.items()
        }
    (lab.path / "hub.json").write_text(json.dumps(commits))
    return outcome


def _push(lab: Lab, *more: str | Path, answers: Sequence[Answer] = ()) -> Outcome:
    return _with_hub(lab, answers, "push", lab.out, "--repo_id", REPO, "--allow_unevaluated", "--yes", *more)


def _published(lab: Lab) -> list[list[str]]:
    return json.loads((lab.path / "hub.json").read_text()).get(REPO, {}).get("main", [])


def _nothing_published(lab: Lab, outcome: Outcome) -> str | None:
    half = [files for files in _published(lab) if files != [".gitattributes"]]
    return f"something was published: {half[-1]}" if half else None


def _one_line(lab: Lab, outcome: Outcome) -> str | None:
    errors = [line for line in outcome.output.splitlines() if "error: " in line]
    return None if len(errors) == 1 else f"{len(errors)} lines of errors"


def _refused_upload(pattern: str, status: int, train: bool = False) -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        answers = [Answer(pattern, status)]
        if train:
            train_and_push = [*_known_base(lab), "--push_to_hub", "--hub_model_id", REPO, "--hub_token", "hf_test"]
            return _with_hub(lab, answers, *train_and_push)
        _finished(lab)
        return _push(lab, answers=answers)

    return provoke


def _damaged(name: str, change: Callable[[bytes], bytes]) -> Callable[[Lab], Outcome]:
    """Push a run of which one file was changed."""

    def provoke(lab: Lab) -> Outcome:
        path = _finished(lab) / name
        path.write_bytes(change(path.read_bytes()))
        return _push(lab)

    return provoke


def _record(**changes) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


def _flipped(data: bytes) -> bytes:
    """64 bytes at the end of the weights, one bit each."""
    return data[:-64] + bytes(byte ^ 1 for byte in data[-64:])


def _unfinished(lab: Lab) -> Outcome:
    checkpoint = lab.out / "checkpoint-2" / "files.json"
    lab.train(kill_when=checkpoint.is_file)
    return _push(lab)


def _input_folder(lab: Lab) -> Outcome:
    lab.out = lab.encoder
    return _push(lab)


def _pickle_as_result(lab: Lab) -> Outcome:
    _finished(lab)
    torch.save({"a": 1}, lab.path / "results.pkl")
    return _push(lab, "--results", "results.pkl")


def _hostile_name(lab: Lab) -> Outcome:
    """The data's folder has a name full of markup."""
    name = lab.path / HOSTILE.replace("/", "")
    lab.speech.rename(name)
    lab.run(*_known_base(lab), "--train_data", name)
    return _push(lab, "--show_card")


def _card_is_harmless(lab: Lab, outcome: Outcome) -> str | None:
    outside = "".join(part for part in outcome.output.split("`")[::2])
    found = [text for text in ("<img", "](javascript", "\n# c") if text in outside]
    return f"the card holds {found}" if found else None


def _token_on_disk(lab: Lab) -> Outcome:
    return lab.run(*_known_base(lab), "--hub_token", "hf_secret_of_mine")


def _no_token(lab: Lab, outcome: Outcome) -> str | None:
    found = [str(path) for path in lab.out.rglob("*") if path.is_file() and b"hf_secret_of_mine" in path.read_bytes()]
    return f"the token is in {found}" if found else None


def _lost_answer(*more: str) -> Callable[[Lab], Outcome]:
    """The commit is made, its answer lost; the same command again."""

    def provoke(lab: Lab) -> Outcome:
        _finished(lab)
        with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
            hub.attach(patch, lab.path / "hub-home")
            hub.create(REPO)
            command = ["push", lab.out, "--repo_id", REPO, "--allow_unevaluated", "--yes", *more]
            hub.failures = [Answer("POST .*/commit/main", 0, times=1, after=True)]
            if not lab.run(*command).status:
                raise RuntimeError("the lost answer was not noticed")
            outcome = lab.run(*command)
            repository = hub.repositories[REPO]
            found = {name: len(commits) for name, commits in repository.branches.items()}, list(repository.tags)
        (lab.path / "hub.json").write_text(json.dumps(found))
        return outcome

    return provoke


def _commits(*expected) -> Callable[[Lab, Outcome], str | None]:
    def judge(lab: Lab, outcome: Outcome) -> str | None:
        found = json.loads((lab.path / "hub.json").read_text())
        return None if found == [*expected] else f"commits and tags are {found}"

    return judge


def _fairseq(lab: Lab) -> Path:
    """The lab's encoder under fairseq's names, as far as they matter."""
    state = AutoModel.from_pretrained(lab.encoder).state_dict()
    names = (
        ("feature_extractor.conv_layers.0.layer_norm.", "feature_extractor.conv_layers.0.2."),
        (".conv.weight", ".0.weight"),
        ("feature_projection.projection.", "post_extract_proj."),
        ("feature_projection.layer_norm.", "layer_norm."),
        ("masked_spec_embed", "mask_emb"),
        ("encoder.pos_conv_embed.conv.", "encoder.pos_conv.0."),
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
        (".attention.", ".self_attn."),
        ("feed_forward.intermediate_dense", "fc1"),
        ("feed_forward.output_dense", "fc2"),
    )
    weights = {}
    for name, tensor in state.items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        if ".layer_norm." in name and name.startswith("encoder.layers"):
            name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        weights[name] = tensor
    path = lab.path / "states-1.ckpt"
    torch.save({"Upstream": {f"model.{name}": tensor for name, tensor in weights.items()}}, path)
    return path


def _convert(change: Callable[[Path], object] | None, *more: str, out: str = "converted") -> Callable[[Lab], Outcome]:
    def provoke(lab: Lab) -> Outcome:
        path = _fairseq(lab)
        if change is not None:
            change(path)
        return lab.run("convert", path.name, "--base", "encoder", "--output_dir", out, *more)

    return provoke


def _base_is_whole(lab: Lab, outcome: Outcome) -> str | None:
    AutoModel.from_pretrained(lab.encoder)
    return "the base model's folder was written to" if (lab.encoder / "conversion.json").exists() else None


def _converted(lab: Lab) -> dict[str, str]:
    folder = lab.path / "converted"
    files = {path.name: digest(path) for path in folder.iterdir() if path.name != "conversion.json"}
    return {**files, "record": json.loads((folder / "conversion.json").read_text())["weights_sha256"]}


def _convert_again(lab: Lab) -> list[str]:
    if not (lab.path / "states-1.ckpt").is_file():
        _fairseq(lab)
    return ["convert", "states-1.ckpt", "--base", "encoder", "--output_dir", "converted", "--overwrite_output_dir"]


def _ctc(lab: Lab) -> Path:
    """A CTC model of the lab's encoder."""
    units = ["[PAD]", "[UNK]", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    folder = lab.path / "ctc"
    shutil.copytree(lab.encoder, folder)
    torch.manual_seed(0)
    HubertForCTC.from_pretrained(lab.encoder, vocab_size=len(units), pad_token_id=0).save_pretrained(folder)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({unit: number for number, unit in enumerate(units)}))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": None, "eos_token": None}
    Wav2Vec2CTCTokenizer(str(vocabulary), **special).save_pretrained(folder)
    return folder


def _evaluate(
    change: Callable[[Lab, Path], object] | None = None, *more: str, head: bool = False
) -> Callable[[Lab], Outcome]:
    """`eval_ctc.py` on a CTC model, or with a head on the encoder, one of which was changed."""

    def provoke(lab: Lab) -> Outcome:
        model = lab.encoder if head else _ctc(lab)
        if change is not None:
            change(lab, model)
        options = ["--train_head", "2", "--head_steps", "2"] if head else []
        command = ["eval-ctc", "--model", model, "--data", "speech", "--split", "1", "--device", "cpu", *options]
        return lab.run(*command, "--output", "wer.json", *more)

    return provoke


def _weights(change: Callable[[dict], dict], form: str = "model.safetensors") -> Callable[[Lab, Path], None]:
    def apply(lab: Lab, model: Path) -> None:
        state = change(load_file(model / "model.safetensors"))
        (model / "model.safetensors").unlink()
        if form.endswith(".bin"):
            torch.save(state, model / form)
        else:
            save_file(state, model / form, metadata={"format": "pt"})

    return apply


def _without_top(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if "layers.2." not in name}


def _foreign_prefix(state: dict) -> dict:
    return {f"foreign.{name}": tensor for name, tensor in state.items()}


def _old_names(state: dict) -> dict:
    new = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for name, old in new.items():
        state = {key.replace(name, old): tensor for key, tensor in state.items()}
    return state


def _transcript(encoding: str, text: str = "CAFÉ") -> Callable[[Lab, Path], None]:
    def apply(lab: Lab, model: Path) -> None:
        path = lab.speech / "1" / "10" / "1-10.trans.txt"
        path.write_bytes(path.read_text().replace("THREE", text).encode(encoding))

    return apply


def _own_code(lab: Lab, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    code = {"AutoConfig": "own.Config", "AutoModelForCTC": "own.Model"}
    (model / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": code}))
    (model / "own.py").write_text(f"open({str(lab.path / 'ran')!r}, 'w')\n")


def _no_code_ran(lab: Lab, outcome: Outcome) -> str | None:
    return "code of the model was run" if (lab.path / "ran").exists() else None


def _no_record(lab: Lab, outcome: Outcome) -> str | None:
    return "a result was written" if (lab.path / "wer.json").exists() else None


def _all_evaluated(lab: Lab, outcome: Outcome) -> str | None:
    found = json.loads((lab.path / "wer.json").read_text())["data"]["utterances"]
    return None if found == 4 else f"{found} utterances instead of 4"


def _one_hertz(lab: Lab, model: Path) -> None:
    for path in (lab.speech / "1").rglob("*.flac"):
        soundfile.write(path.with_suffix(".wav"), tones(0.5, 1), 1)
        path.unlink()


def _without_scipy(lab: Lab) -> Outcome:
    """8 kHz speech, which has to be resampled."""
    for path in (lab.speech / "1").rglob("*.flac"):
        soundfile.write(path, tones(0.5, 1, 8_000), 8_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "scipy.signal", None)
        patch.delitem(sys.modules, "laser_hf.publishing.eval_ctc", raising=False)
        return _evaluate()(lab)


FAULTS = [
    Fault(6, "eval_ctc: 8 kHz without scipy", _without_scipy, 1, ("needs scipy: pip install",), _no_record),
    Fault(
        8,
        "upload: weights refused with 403",
        _refused_upload("PUT /lfs/", 403),
        1,
        ("hf auth login", "HTTP 403"),
        _nothing_published,
    ),
    Fault(
        8, "upload: weights cut off", _refused_upload("PUT /lfs/", 0), 1, ("the connection broke",), _nothing_published
    ),
    Fault(
        8,
        "upload: the Hub fails with 500",
        _refused_upload("PUT /lfs/", 500),
        1,
        ("the same command again",),
        _nothing_published,
    ),
    Fault(
        8,
        "upload: weights' address refused with 403",
        _refused_upload("objects/batch", 403),
        1,
        ("HTTP 403",),
        _nothing_published,
    ),
    Fault(
        8,
        "upload: commit refused with 403",
        _refused_upload("POST .*/commit/", 403),
        1,
        ("HTTP 403",),
        _nothing_published,
    ),
    Fault(
        8,
        "train: weights refused with 403",
        _refused_upload("PUT /lfs/", 403, True),
        1,
        ("the run is complete", "To publish it later: "),
        _one_line,
    ),
    Fault(
        8,
        "train: weights cut off",
        _refused_upload("PUT /lfs/", 0, True),
        1,
        ("the run is complete", "To publish it later: "),
        _one_line,
    ),
    Fault(
        8,
        "upload: the answer to the commit is lost",
        _lost_answer(),
        0,
        ("Nothing has changed since",),
        _commits({"main": 2}, ["v1.0"]),
    ),
    Fault(
        8,
        "upload: the answer to the pull request is lost",
        _lost_answer("--create_pr"),
        0,
        ("Nothing has changed since", "/discussions/1"),
        _commits({"main": 1, "refs/pr/1": 2}, []),
    ),
    Fault(8, "the Hub's token in a run's files", _token_on_disk, 0, judge=_no_token, quick=True),
    Fault(8, "markup in the name of the speech's folder", _hostile_name, 0, ("onerror",), _card_is_harmless),
    Fault(8, "a pickle among the results", _pickle_as_result, 1, ("cannot read", "results.pkl"), _nothing_published),
    Fault(
        1,
        "push: truncated laser_config.json",
        _damaged("laser_config.json", lambda data: data[:100]),
        1,
        ("cannot read", "laser_config.json"),
        _nothing_published,
    ),
    Fault(
        1,
        "push: a record without recipe",
        _damaged("laser_config.json", _record(recipe={})),
        1,
        ("laser_config.json",),
        _nothing_published,
    ),
    Fault(
        1,
        "push: truncated training_log.json",
        _damaged("training_log.json", lambda data: data[:20]),
        1,
        ("cannot read", "training_log.json"),
        _nothing_published,
    ),
    Fault(
        1,
        "push: truncated weights",
        _damaged("model.safetensors", lambda data: data[:-10]),
        1,
        ("damaged or cut off",),
        _nothing_published,
        quick=True,
    ),
    Fault(
        1,
        "push: 64 flipped bits in the weights",
        _damaged("model.safetensors", _flipped),
        1,
        ("model.safetensors was changed or damaged",),
        _nothing_published,
    ),
    Fault(
        1,
        "push: empty config.json",
        _damaged("config.json", lambda data: b""),
        1,
        ("cannot read", "config.json"),
        _nothing_published,
    ),
    Fault(1, "push: an unfinished run", _unfinished, 1, ("has not finished",), _nothing_published),
    Fault(
        3,
        "push: the folder of the base model",
        _input_folder,
        1,
        ("it is no output of laser-hf train",),
        _nothing_published,
    ),
    Fault(
        1,
        "convert: a checkpoint cut in half",
        _convert(lambda path: path.write_bytes(path.read_bytes()[:50_000])),
        1,
        ("damaged",),
    ),
    Fault(1, "convert: a checkpoint of no bytes", _convert(lambda path: path.write_bytes(b"")), 1, ("damaged",)),
    Fault(
        3,
        "convert: the output folder is the base model",
        _convert(None, "--overwrite_output_dir", out="encoder"),
        1,
        ("which is read",),
        _base_is_whole,
        quick=True,
    ),
    Fault(7, "convert: an empty output folder", _convert(None, out=""), 1, ("--output_dir is empty",)),
    Fault(
        4,
        "eval_ctc: an encoder without its top layer, with a head",
        _evaluate(lambda lab, model: _weights(_without_top)(lab, model), head=True),
        1,
        ("it lacks", "encoder.layers.2"),
        _no_record,
        quick=True,
    ),
    Fault(
        4,
        "eval_ctc: a foreign prefix, with a head",
        _evaluate(_weights(_foreign_prefix), head=True),
        1,
        ("it lacks",),
        _no_record,
    ),
    Fault(
        4,
        "eval_ctc: a CTC model without its top layer",
        _evaluate(_weights(_without_top)),
        1,
        ("it lacks", "encoder.layers.2"),
        _no_record,
    ),
    Fault(
        4,
        "eval_ctc: weights that are not finite",
        _evaluate(_weights(lambda s: {n: t / 0 for n, t in s.items()})),
        1,
        ("not finite",),
        _no_record,
    ),
    Fault(
        4,
        "eval_ctc: old names of weights in a .bin",
        _evaluate(_weights(_old_names, "pytorch_model.bin")),
        0,
        judge=_all_evaluated,
    ),
    Fault(
        4,
        "eval_ctc: fp16 weights",
        _evaluate(_weights(lambda s: {n: t.half() for n, t in s.items()})),
        0,
        judge=_all_evaluated,
    ),
    Fault(
        4,
        "eval_ctc: --max_utterances 0",
        _evaluate(None, "--max_utterances", "0"),
        2,
        ("must be at least 1",),
        _no_record,
    ),
    Fault(
        4,
        "eval_ctc: --head_steps -3",
        _evaluate(None, "--head_steps", "-3", head=True),
        2,
        ("must be at least 1",),
        _no_record,
    ),
    Fault(5, "eval_ctc: a model with code of its own", _evaluate(_own_code), 1, ("custom code",), _no_code_ran),
    Fault(6, "eval_ctc: a byte order mark", _evaluate(_transcript("utf-8-sig")), 0, judge=_all_evaluated),
    Fault(
        6,
        "eval_ctc: Latin-1 transcripts",
        _evaluate(_transcript("latin-1")),
        1,
        ("1-10.trans.txt, line 2", "not UTF-8"),
        _no_record,
    ),
    Fault(
        6,
        "eval_ctc: UTF-16 transcripts",
        _evaluate(_transcript("utf-16")),
        1,
        ("1-10.trans.txt, line 1", "not UTF-8"),
        _no_record,
    ),
    Fault(6, "eval_ctc: headers that say 1 Hz", _evaluate(_one_hertz), 1, ("a rate outside 4 to 384 kHz",), _no_record),
]

KILLS = [KillPlan("convert", _convert_again, _converted, 6)]
