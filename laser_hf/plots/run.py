"""All pictures of a finished run: curves, and an utterance and words before and after fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.nn.functional import normalize

from .. import figures
from ..data import PairTransform, build_perturbation
from ..encoders import load_encoder
from ..errors import LaserError
from ..objectives import Objective, find_objective
from ..records import TRAINING_RECORD, located, read_json, read_record
from ..superb.discrimination.tokens import frame_times, read_alignments, token_frames
from ..superb.features import EncoderFeatures, pick_device
from ..superb.frame_store import encode
from .alignment import alignment_figure, shares_beyond
from .curves import training_figure
from .panels import self_similarity_figure, words_figure
from .speech import ViewPair, WordSpeech, load_pairs, load_words, or_shipped

logger = logging.getLogger(__name__)

HISTORY = "training_log.json"
SHIPPED_ENCODER = "{laser_hf}/demo/encoder"
MAX_PAIRS = 64  # whose alignments are measured; as many as training looks at by default


def draw_run(
    run_dir: str | Path,
    output_dir: str | Path | None = None,
    *,
    base: str | None = None,
    data: str | Path | None = None,
    alignments: str | Path | None = None,
    splits: Sequence[str] | None = None,
    utterance: str | None = None,
    record: Mapping[str, Any] | None = None,
) -> list[Path]:
    """All pictures of a run, `LaserError` unless it is finished; returns the files written, by default in its `plots`.

    They are `loss_terms.png`, `words.png`, `alignment.png` and `self_similarity.png`. What cannot be drawn is left out,
    with a warning that says why. Without `data` and `alignments`, pairs and words are from the run's held-out speech
    (pairs else from its training speech), or from the speech shipped with laser_hf.

    Args:
        run_dir, record: output folder of `laser-hf train`, and its record, which training writes after the pictures.
        base: the encoder before fine-tuning; by default the one the run started from.
        data, splits: folder of speech, or, for the pairs alone, id of a dataset on the Hub.
        alignments, utterance: word times, see `load_words`; name of the utterance to draw.
    """
    run_dir = Path(run_dir)
    folder = run_dir / "plots" if output_dir is None else Path(output_dir)
    record = read_run(run_dir) if record is None else record
    title, drawn = run_title(record), []

    def draw(name: str, about: str, make: Callable[[], Figure]) -> None:
        if (figure := attempt(name, make)) is not None:
            drawn.append(figures.save(figure, folder / name, f"{title}{about}"))

    if (history := attempt("the curves", lambda: read_json(run_dir / HISTORY)["log"])) is not None:
        terms, marks = objective_of(record).term_labels, curve_marks([record])
        draw("loss_terms.png", "", lambda: training_figure({title: history}, terms, *marks))
    encoders = attempt("anything but the curves", lambda: _load_encoders(run_dir, record, base))
    if encoders is None:
        return drawn
    words = attempt("words.png", lambda: _find_words(record, data, alignments, splits))
    if words:
        about = f"\n{len(words.tokens)} spoken words ({words.source}), means of last-layer frames"
        draw("words.png", about, lambda: words_figure(_word_vectors(encoders, words), words.tokens))
    pairs = attempt("the utterance", lambda: _find_pairs(record, data, splits, utterance))
    if pairs:
        first, encoder = pairs[0], next(iter(encoders.values()))
        seconds, middle = encoder.frame_seconds, frame_times(encoder)["first_seconds"]
        gamma = record["recipe"]["objective"].get("gamma", 0.1)

        def shares(features: EncoderFeatures) -> torch.Tensor:
            last = [features.layers - 1]
            frames = ((*features([pair.clean, pair.perturbed], last)[0], pair.speed) for pair in pairs)
            return shares_beyond(frames, gamma, seconds, middle)

        def similarities() -> Figure:
            cropped = record["recipe"]["data"].get("crop_seconds")  # anywhere: times of words do not hold there
            named = [] if cropped else [Path(first.utterance).name]
            spoken = read_alignments(words.alignments, utterances=named).words if words else []
            frames = {name: one([first.clean], [one.layers - 1])[0][0] for name, one in encoders.items()}
            return self_similarity_figure(frames, seconds, spoken)

        about = f"\n{len(pairs)} pairs of views ({first.source}), last layer; one of them: {first.change}"
        draw("alignment.png", about, lambda: alignment_figure({n: shares(f) for n, f in encoders.items()}, seconds))
        draw("self_similarity.png", f"\n{first.utterance} ({first.source}), last layer", similarities)
    return drawn


def read_run(run_dir: Path) -> dict[str, Any]:
    """The record of a finished run; `LaserError` if there is none."""
    if (run_dir / TRAINING_RECORD).is_file():
        record = read_record(run_dir / TRAINING_RECORD)
        missing = [name for name in ("method", "base_model", "updates") if name not in record]
        missing += [f"recipe.{name}" for name in ("model", "objective") if name not in record["recipe"]]
        if missing:
            raise LaserError(f"{run_dir / TRAINING_RECORD} is no training record: it lacks {', '.join(missing)}")
        return record
    if (run_dir / "recipe.json").is_file():
        raise LaserError(f"the run in {run_dir} is not finished. Give its laser-hf train command again to continue it")
    raise LaserError(f"{run_dir} holds no {TRAINING_RECORD}; expected the output folder of laser-hf train")


def run_title(record: Mapping[str, Any]) -> str:
    """What was trained, from the record of a run: "LASER on hubert-base-ls960, 3600 updates"."""
    shipped = record["recipe"]["model"]["model_name_or_path"] == SHIPPED_ENCODER
    base = "the shipped encoder" if shipped else record["base_model"]["name"]
    return f"{objective_of(record).title or record['method']} on {base}, {record['updates']} updates"


def curve_marks(records: Sequence[Mapping[str, Any]]) -> tuple[int, int | None]:
    """Updates of warm-up and number of held-out pairs, where all `records` agree; else 0 and `None`."""
    steps = {(one["recipe"].get("training", {}).get("warmup_steps") or 0, one["updates"]) for one in records}
    pairs = {one["data"].get("held_out_utterances") for one in records}
    warm_up, updates = steps.pop() if len(steps) == 1 else (0, 0)
    # Below one it is a share of the run.
    return round(warm_up * updates) if warm_up < 1 else int(warm_up), pairs.pop() if len(pairs) == 1 else None


def objective_of(record: Mapping[str, Any]) -> type[Objective]:
    """That of a run; the base class, which has no title, if it is somebody's own and cannot be imported here."""
    return attempt("title and terms of the method", lambda: find_objective(record["method"])) or Objective


def attempt(what: str, action: Callable[[], Any]) -> Any:
    """What `action` gives, or `None` and a warning if the data do not allow it."""
    try:
        return action()
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # the last: no memory
        logger.warning("Not drawn: %s (%s)", what, error)
        return None


def _load_encoders(run_dir: Path, record: Mapping[str, Any], base: str | None) -> dict[str, EncoderFeatures]:
    model, revision = record["recipe"]["model"], None
    if base is None:
        base = located(model["model_name_or_path"])
        revision = record["base_model"].get("revision") or model.get("model_revision")
    where = {"before fine-tuning": (base, revision), "after fine-tuning": (str(run_dir), None)}
    encoders = {n: load_encoder(*at, do_normalize=model.get("do_normalize", False)) for n, at in where.items()}
    return {name: EncoderFeatures(encoder.to(pick_device("auto"))) for name, encoder in encoders.items()}


def _find_pairs(record: Mapping[str, Any], data, splits, utterance: str | None) -> list[ViewPair]:
    options = {k: located(v) if isinstance(v, str) else v for k, v in record["recipe"]["perturbations"].items()}
    perturbation = build_perturbation(options.pop("name"), options)
    limits = {k: v for k, v in record["recipe"]["data"].items() if k in ("min_seconds", "max_seconds", "crop_seconds")}
    about, transform = record["data"], PairTransform(perturbation, record["seed"] or 0, **limits)
    count = min(about.get("held_out_utterances") or MAX_PAIRS, MAX_PAIRS)
    how = {"transform": transform, "count": count, "utterance": utterance}
    if data is not None:
        return load_pairs(data, splits=splits, **how)
    names = ("held_out", "held_out_split", "held_out_name") if about.get("held_out") else ("source", "split", "name")
    source, split, name = (about.get(one) for one in names)
    return or_shipped(load_pairs, located(source or ""), splits=[split] if split else None, name=name, **how)


def _find_words(record: Mapping[str, Any], data, alignments, splits) -> WordSpeech:
    held_out = located(record["data"].get("held_out") or "")
    if data is None and alignments is None:
        return or_shipped(load_words, held_out if held_out and Path(held_out).is_dir() else "")
    if data is None and not held_out:
        raise LaserError("the run has no held-out speech; give --data beside --alignments")
    return load_words(held_out if data is None else data, alignments, splits)


def _word_vectors(encoders: Mapping[str, EncoderFeatures], words: WordSpeech) -> dict[str, torch.Tensor]:
    """Mean of the last-layer frames of each word, `(tokens, dim)`, for each encoder."""
    vectors = {}
    for name, features in encoders.items():
        (frames,) = encode(features, words.waveforms, [features.layers - 1])
        parts = token_frames(frames, words.tokens, **frame_times(features))
        vectors[name] = normalize(torch.stack([part.mean(0) for part in parts]), dim=1)
    return vectors
