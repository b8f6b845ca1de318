"""Kind 7: options of `train` that are taken and ignored, and values without a range."""

from __future__ import annotations

from collections.abc import Callable

from laser_hf.records import read_json

from ..lab import Fault, Lab, Outcome


def _refused(*argv: str, says: str, quick: bool = False) -> Fault:
    """Options that argparse's own way refuses: exit status 2, and nothing is made."""

    def nothing(lab: Lab, outcome: Outcome) -> str | None:
        return "an output folder was made" if lab.out.exists() else None

    return Fault(7, f"train {' '.join(argv)}", lambda lab: lab.train(*argv), 2, (says,), nothing, quick)


def _preset(name: str, text: bytes, says: str) -> Fault:
    def provoke(lab: Lab) -> Outcome:
        (lab.path / "mine.json").write_bytes(text)
        return lab.run("train", "--preset", "mine.json", "--output_dir", lab.out, "--use_cpu")

    return Fault(7, f"a preset with {name}", provoke, 2, (says,))


def _log(check: Callable[[list[dict]], str | None]) -> Callable[[Lab, Outcome], str | None]:
    return lambda lab, outcome: check(read_json(lab.out / "training_log.json")["log"])


def _evaluations(expected: list[int]) -> Callable[[list[dict]], str | None]:
    def check(log: list[dict]) -> str | None:
        found = [entry["step"] for entry in log if "eval_loss" in entry]
        return None if found == expected else f"evaluated at {found} instead of {expected}"

    return check


_HELD_OUT = ("--eval_data", "speech/1", "--eval_steps", "2")

FAULTS = [
    Fault(
        7, "train --eval_strategy no", lambda lab: lab.train(*_HELD_OUT, "--eval_strategy", "no"), 0, (),
        _log(_evaluations([])),
    ),
    Fault(
        7, "train --eval_strategy steps", lambda lab: lab.train(*_HELD_OUT, "--eval_strategy", "steps"), 0, (),
        _log(_evaluations([2, 4, 6])),
    ),
    _refused("--eval_strategy", "epoch", says="--eval_strategy must be steps or no"),
    _refused("--num_train_epochs", "1", says="--max_steps", quick=True),
    _refused("--gradient_accumulation_steps", "2", says="--pairs_per_update"),
    _refused("--train_sampling_strategy", "sequential", says="it is not taken"),
    _refused("--dataloader_drop_last", says="it is not taken"),
    _refused("--dataloader_drop_last", "true", says="it is not taken"),
    _refused("--auto_find_batch_size", says="it is not taken"),
    _refused("--label_smoothing_factor", "0.1", says="it is not taken"),
    _refused("--neftune_noise_alpha", "5", says="it is not taken"),
    _refused("--hub_strategy", "end", says="it is not taken"),
    _refused("--ignore_data_skip", says="it is not taken"),
    _refused("--max_grad_norm", "nan", says="--max_grad_norm must be at least 0, got nan"),
    _refused("--max_grad_norm", "-1", says="--max_grad_norm must be at least 0, got -1"),
    _refused("--min_seconds", "nan", says="--min_seconds must be at least 0, got nan"),
    _refused("--crop_seconds", "0", says="--crop_seconds must be above 0, got 0"),
    _refused("--learning_rate", "inf", says="--learning_rate must be above 0, got inf"),
    _refused("--learning_rate", "0", says="--learning_rate must be above 0, got 0"),
    _refused("--weight_decay", "nan", says="--weight_decay must be at least 0, got nan"),
    _refused("--adam_beta1", "1", says="--adam_beta1 must be"),
    _refused("--warmup_steps", "-5", says="--warmup_steps must be at least 0"),
    _refused("--trainable_layers", "0", says="--trainable_layers must be at least 1"),
    _refused("--hidden_dropout", "1.5", says="--hidden_dropout must be"),
    _refused("--pairs_per_update", "0", says="--pairs_per_update must be at least 1"),
    _refused("--save_steps", "0", says="--save_steps must be above 0"),
    _refused("--save_total_limit", "0", says="--save_total_limit must be at least 1"),
    _refused("--dataloader_num_workers", "-1", says="--dataloader_num_workers must be at least 0"),
    _refused("--seed", "-1", says="--seed must be from 0"),
    _refused("--max_eval_samples", "0", says="--max_eval_samples must be at least 1"),
    _refused("--gamma", "1e-310", says="gamma must be"),
    _refused("--speed_factors", "0.01", says="speed_factors must be"),
    _refused("--speed_factors", "10", says="speed_factors must be"),
    _refused("--pitch_steps", "40", says="pitch_steps must be"),
    _refused("--ddp_backend", "gloo", says="--ddp_backend gloo is for several processes"),
    _refused("--coupled_weight_decay", "--optim", "adafactor", says="--optim"),
    Fault(
        7, "train --output_dir ''", lambda lab: lab.run("train", "--preset", "lab.json", "--output_dir", ""), 1,
        ("--output_dir is empty",),
    ),
    _preset("null", b'{"max_steps": null}', "--max_steps must be a whole number, got None"),
    _preset("a list", b'{"learning_rate": [1, 2]}', "--learning_rate must be a number"),
    _preset("1.5 layers", b'{"trainable_layers": 1.5}', "--trainable_layers must be a whole number, got 1.5"),
    _preset("a number for a path", b'{"train_data": 3}', "--train_data must be a text, got 3"),
    _preset("a refused option", b'{"num_train_epochs": 2}', "unknown keys: num_train_epochs"),
    _preset("Latin-1 text", '{"train_data": "Größe"}'.encode("latin-1"), "is not valid JSON"),
    _preset("UTF-16 text", '{"max_steps": 3}'.encode("utf-16"), "is not valid JSON"),
    _preset("a list instead of an object", b"[1, 2]", "must be a JSON object"),
    _preset("no JSON", b"max_steps: 3", "is not valid JSON"),
]  # fmt: skip
