"""Kinds 4 and 5, and the base model of kind 2: encoders that are not exactly what was assumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import soundfile
import torch
import transformers
from safetensors.torch import load_file, save_file

from ..lab import Fault, Lab, Outcome, digest, tones

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
Weights = Mapping[str, torch.Tensor]


def _rewrite(lab: Lab, change: Callable[[Weights], Weights], old_file: bool = False, **config) -> None:
    """Change the weights of the lab's encoder, and entries of its config; in the old file format if asked."""
    file, settings = lab.encoder / "model.safetensors", lab.encoder / "config.json"
    weights = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
    file.unlink()
    if old_file:
        torch.save(weights, lab.encoder / "pytorch_model.bin")
    else:
        save_file(weights, file, metadata={"format": "pt"})
    settings.write_text(json.dumps(json.loads(settings.read_text()) | config))


def _without_top(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.layers.2.")}


def _prefixed(weights: Weights, prefix: str = "module.") -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def _with(name: str, value: float) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: torch.full((32,), value)}


def _wavlm(lab: Lab) -> None:
    """WavLM's weights under HuBERT's config."""
    config = json.loads((lab.encoder / "config.json").read_text())
    transformers.WavLMModel(transformers.WavLMConfig(**SMALL)).save_pretrained(lab.encoder)
    (lab.encoder / "config.json").write_text(json.dumps(config))


def _old_ctc(weights: Weights) -> Weights:
    """Names from before PyTorch's parametrizations, in half precision, behind a prefix and with a head."""
    new = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for name, tensor in weights.items():
        for one, other in new.items():
            name = name.replace(one, other)
        renamed[f"hubert.{name}"] = tensor.half()
    return {**renamed, "lm_head.weight": torch.zeros(5, 32), "lm_head.bias": torch.zeros(5)}


def _encoder(lab: Lab, kind: str, **config) -> None:
    """Another random encoder instead of the lab's."""
    config_class, model_class = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}Model")
    torch.manual_seed(1)
    model = model_class(config_class(**{**SMALL, **config}))
    for tensor in model.buffers():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    model.save_pretrained(lab.encoder)


def _words(lab: Lab) -> None:
    rows = ["utterance\tword\tstart_seconds\tduration_seconds"]
    for file in sorted(lab.speech.rglob("*.flac")):
        word = ("river", "garden", "letter", "winter")[int(file.stem[-1])]
        rows += [f"{file.stem}\t{word}\t0.05\t0.2", f"{file.stem}\tsummer\t0.26\t0.2"]
    (lab.path / "words.tsv").write_text("\n".join(rows) + "\n")


def _qbe(lab: Lab) -> None:
    folder = lab.path / "qbe"
    folder.mkdir()
    for number, name in enumerate("abc"):
        soundfile.write(folder / f"{name}.wav", tones(1.0, number), 16_000)
    (folder / "queries.tsv").write_text(
        "query\taudio\tstart_seconds\tduration_seconds\tspeaker\tword\n"
        "q0\ta.wav\t0.3\t0.4\t1\tone\nq1\tc.wav\t0.1\t0.4\t2\ttwo\n"
    )
    (folder / "documents.tsv").write_text("document\taudio\tspeaker\na\ta.wav\t1\nb\tb.wav\t2\nc\tc.wav\t2\n")
    (folder / "targets.tsv").write_text("query\tdocument\nq0\tb\nq1\ta\n")


def _fairseq(lab: Lab) -> None:
    """A file that `convert` takes for a fairseq checkpoint."""
    torch.save({"model": {"feature_extractor.conv_layers.0.0.weight": torch.zeros(16, 1, 10)}}, lab.path / "fairseq.pt")


# Every command that reads an encoder, on the lab's; they run in its folder.
_TWO_UPDATES = "--train_split 1 --dev_split 2 --test_split 3 --protocol quick --max_steps 2 --eval_steps 2"
COMMANDS = {
    "train": "train --preset lab.json --output_dir out --use_cpu",
    "asr": f"superb asr --model encoder --data speech --output_dir out {_TWO_UPDATES}",
    "pr": f"superb pr --model encoder --data speech --output_dir out {_TWO_UPDATES}",
    "qbe": "superb qbe --model encoder --data qbe --output_dir out",
    "discrimination": "superb discrimination --model encoder --data speech --alignments words.tsv --output_dir out "
    "--min_seconds 0.1",
    "search": "search --preset lab.json --over alpha=0.1,0.4 --data speech --alignments words.tsv --output_dir out -- "
    "--use_cpu true",
    "convert": "convert fairseq.pt --base encoder --output_dir out",
    "eval-ctc": "eval-ctc --model encoder --data speech --split 1 --train_head 2 --head_steps 2 --device cpu",
}


def _run(arrange: Callable[[Lab], None], command: str = "train") -> Callable[[Lab], Outcome]:
    """Run a command after `arrange`, with the data that it needs."""

    def provoke(lab: Lab) -> Outcome:
        arrange(lab)
        {"qbe": _qbe, "discrimination": _words, "search": _words, "convert": _fairseq}.get(command, lambda _: None)(lab)
        return lab.run(*COMMANDS[command].split())

    return provoke


def _unsupported(lab: Lab) -> None:
    _rewrite(lab, dict, model_type="whisper")


def _lacking(lab: Lab) -> None:
    _rewrite(lab, _without_top)


def _infinite(lab: Lab) -> None:
    _rewrite(lab, _with("encoder.layer_norm.bias", float("inf")))


def _published(lab: Lab) -> Outcome:
    """Train on a prefixed half-precision CTC checkpoint of old names, then check it for publishing."""
    _rewrite(lab, _old_ctc, old_file=True)
    trained = lab.train()
    if trained.status:
        return trained
    facts = lab.path / "facts.json"
    keys = ("base_title", "base_training_data", "licence", "licence_text")
    facts.write_text(json.dumps(dict.fromkeys(keys, "mit")))
    return lab.run("push", lab.out, "--repo_id", "me/encoder", "--allow_unevaluated", "--facts", facts)


def _drawn(lab: Lab) -> Outcome:
    """Pictures of a finished run, whose base encoder is no longer one that is supported."""
    trained = lab.train()
    _unsupported(lab)
    return trained if trained.status else lab.run("plots", lab.out)


def _buffers_kept(lab: Lab, _outcome: Outcome) -> str | None:
    before, after = (load_file(folder / "model.safetensors") for folder in (lab.encoder, lab.out))
    moved = [name for name in before if "batch_norm" in name and not torch.equal(before[name], after[name])]
    return f"{', '.join(moved)} moved" if moved or not any("batch_norm" in name for name in before) else None


def _checkpointed(lab: Lab) -> Outcome:
    """The same run with and without activation checkpointing."""
    first = lab.train(out=lab.path / "plain")
    return lab.train("--gradient_checkpointing", "true") if not first.status else first


def _same_weights(lab: Lab, _outcome: Outcome) -> str | None:
    same = digest(lab.out / "model.safetensors") == digest(lab.path / "plain" / "model.safetensors")
    return None if same else "other weights than without activation checkpointing"


def _own_code(model_type: str) -> Callable[[Lab], None]:
    def arrange(lab: Lab) -> None:
        (lab.encoder / "own.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass C: pass\n")
        auto_map = {"AutoConfig": "own.C", "AutoModel": "own.C", "AutoFeatureExtractor": "own.C"}
        _rewrite(lab, dict, model_type=model_type, auto_map=auto_map)

    return arrange


def _nothing_ran(lab: Lab, _outcome: Outcome) -> str | None:
    if (lab.path / "ran").exists():
        return "the repository's code ran"
    exported = lab.out / "config.json"
    return "the export names code" if exported.is_file() and "auto_map" in exported.read_text() else None


def _damage(name: str, content: bytes | None) -> Callable[[Lab], None]:
    """Overwrite a file of the encoder; `None` cuts off its end."""

    def arrange(lab: Lab) -> None:
        path = lab.encoder / name
        path.write_bytes(path.read_bytes()[:5000] if content is None else content)

    return arrange


FAULTS = [
    Fault(
        4,
        "base model without its top layer",
        _run(_lacking),
        status=1,
        says=("16 weights", "are missing", "encoder.layers.2.attention.k_proj.bias"),
        quick=True,
    ),
    Fault(
        4,
        "base model whose keys carry a foreign prefix",
        _run(lambda lab: _rewrite(lab, _prefixed)),
        status=1,
        says=("are missing", "names begin with 'module.'"),
    ),
    *(
        Fault(
            4,
            f"base model without its top layer: {command}",
            _run(_lacking, command),
            status=1,
            says=("encoder.layers.2.",),
        )
        for command in ("asr", "pr", "qbe", "discrimination", "convert", "search", "eval-ctc")
    ),
    Fault(
        4,
        "base model of other shapes than its config says",
        _run(lambda lab: _rewrite(lab, dict, intermediate_size=48)),
        status=1,
        says=("other shapes", "(64,) instead of (48,)"),
    ),
    Fault(
        4,
        "WavLM's weights under HuBERT's config",
        _run(_wavlm),
        status=1,
        says=("describes another model", "gru_rel_pos"),
    ),
    Fault(
        4,
        "truncated weights of the base model",
        _run(_damage("model.safetensors", None)),
        status=1,
        says=("cannot load the encoder",),
    ),
    *(
        Fault(4, f"base model with a damaged {name}", _run(_damage(name, b"{")), status=1, says=(said,))
        for name, said in (("config.json", "cannot load the encoder"), ("preprocessor_config.json", "is damaged"))
    ),
    Fault(
        4, "prefixed half-precision CTC checkpoint of old names, published", _published, status=0, says=("me/encoder",)
    ),
    Fault(
        4,
        "base model without masked_spec_embed",
        _run(lambda lab: _rewrite(lab, lambda w: {n: t for n, t in w.items() if n != "masked_spec_embed"})),
        status=0,
    ),
    Fault(
        2,
        "base model with an infinite weight",
        _run(_infinite),
        status=1,
        says=("weights are not finite: encoder.layer_norm.bias",),
    ),
    Fault(
        2,
        "base model with NaN in an unused masked_spec_embed",
        _run(lambda lab: _rewrite(lab, _with("masked_spec_embed", float("nan")))),
        status=1,
        says=("weights are not finite: masked_spec_embed",),
        quick=True,
    ),
    Fault(
        2, "base model with an infinite weight: eval-ctc", _run(_infinite, "eval-ctc"), status=1, says=("not finite",)
    ),
    Fault(
        5,
        "BatchNorm before the positional convolution",
        _run(lambda lab: _encoder(lab, "Hubert", conv_pos_batch_norm=True)),
        status=0,
        judge=_buffers_kept,
    ),
    *(
        Fault(
            5,
            f"adapter behind the layers ({kind})",
            _run(lambda lab, kind=kind: _encoder(lab, kind, add_adapter=True, output_hidden_size=32)),
            status=1,
            says=("add_adapter",),
        )
        for kind in ("Wav2Vec2", "WavLM")
    ),
    Fault(
        5,
        "base model for another sampling rate",
        _run(_damage("preprocessor_config.json", b'{"sampling_rate": 8000}')),
        status=1,
        says=("8000 Hz", "16000 Hz"),
    ),
    Fault(5, "activation checkpointing", _checkpointed, status=0, judge=_same_weights),
    Fault(
        5,
        "code in the base model's repository",
        _run(_own_code("hubert")),
        status=0,
        judge=_nothing_ran,
    ),
    Fault(
        5,
        "code of a model type of its own",
        _run(_own_code("my-hubert")),
        status=1,
        says=("'my-hubert' model; supported are hubert",),
        judge=_nothing_ran,
    ),
    Fault(
        5,
        "code of a model type of its own: eval-ctc",
        _run(_own_code("my-hubert"), "eval-ctc"),
        status=1,
        says=("custom code",),
        judge=lambda lab, outcome: "it asks" if "do you wish" in outcome.output.lower() else _nothing_ran(lab, outcome),
    ),
    *(
        Fault(
            5,
            f"unsupported model type: {command}",
            _run(_unsupported, command),
            status=1,
            says=("'whisper' model", "hubert"),
            quick=command == "train",
        )
        for command in ("train", "asr", "pr", "qbe", "discrimination", "convert", "search")
    ),
    Fault(
        5, "unsupported model type: plots", _drawn, status=0, says=("not drawn: anything but the curves", "'whisper'")
    ),
]
