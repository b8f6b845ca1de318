"""All pictures of a run: loss terms, and an utterance and words before and after fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..data import SpeedPitch
from ..encoders import SAMPLE_RATE, SpeechEncoder, load_encoder
from ..ops import soft_dtw_alignment
from ..records import located, read_json
from ..superb.probing.diagnostics import encode, frontend_of
from ..superb.probing.token_distances import mean_pooled, token_frames
from .alignment import plot_alignment
from .curves import History, plot_training
from .similarity import plot_self_similarity
from .speech import ViewPair, WordSpeech, held_out_pair, held_out_words, load_pair, load_words
from .word_map import plot_words

logger = logging.getLogger(__name__)

RECORD = "laser_config.json"
HISTORY = "training_log.json"
SHIPPED_ENCODER = "{laser_hf}/demo/encoder"
_METHODS = {"laser": "LASER", "soft_dtw": "Soft-DTW", "score": "SCORE", "spin": "Spin"}
SHOWN_SECONDS = 3.0  # of an utterance: a path through a longer one would be a hairline
BEFORE, AFTER = "before fine-tuning", "after fine-tuning"
_Found = TypeVar("_Found")


class UnfinishedRun(ValueError):
    """A folder that is no finished run; the message says what it lacks."""


def read_record(run_dir: str | Path) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
        UnfinishedRun: no such folder, or no record in it: it is written last.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UnfinishedRun(f"there is no folder {run_dir}; expected the output folder of train.py")
    if not (run_dir / RECORD).is_file():
        begun = (run_dir / "recipe.json").is_file()
        raise UnfinishedRun(
            f"{run_dir} holds no {RECORD}; "
            + (
                "the run is not finished. Give its train.py command again to continue it"
                if begun
                else "expected the output folder of train.py"
            )
        )
    return read_json(run_dir / RECORD)


def draw_pictures(
    folder: str | Path,
    histories: Mapping[str, History],
    title: str = "",
    *,
    before: SpeechEncoder | None = None,
    after: SpeechEncoder | None = None,
    pair: ViewPair | None = None,
    words: WordSpeech | None = None,
    gamma: float = 0.1,
) -> list[Path]:
    """Draw what there is something to draw of: `loss_terms.png`, `alignment.png`, `self_similarity.png`, `words.png`.

    A picture that cannot be drawn is left out, with a warning that says why.

    Args:
        folder: made if it is not there.
        histories: log history by name of the run; may be empty.
        title: what was trained, above each picture ("LASER on hubert-base-ls960").
        before, after: the encoders, on any device; their mode is restored.
        pair: an utterance for the alignment and the self-similarity.
        words: speech for the map of words.
        gamma: smoothing of soft-DTW.

    Returns:
        The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoders = {BEFORE: before, AFTER: after} if before is not None and after is not None else {}
    heading = f"{title}\n" if title else ""
    drawn = []

    def draw(name: str, picture: Callable[[Path], None]) -> None:
        if _attempt(name, lambda: picture(folder / name) or True):
            drawn.append(folder / name)

    if histories:
        draw("loss_terms.png", lambda path: plot_training(histories, path, title))
    if encoders and pair is not None:
        views = _attempt("the utterance", lambda: {name: _frames(one, pair) for name, one in encoders.items()})
        if views is not None:
            draw("alignment.png", lambda path: _draw_alignment(path, views, pair, gamma, heading))
            draw("self_similarity.png", lambda path: _draw_similarity(path, views, pair, words, heading))
    if encoders and words is not None:
        draw("words.png", lambda path: _draw_words(path, encoders, words, heading))
    return drawn


def draw_run(
    run_dir: str | Path,
    output_dir: str | Path | None = None,
    *,
    base: str | None = None,
    data: str | Path | None = None,
    alignments: str | Path | None = None,
    splits: Sequence[str] | None = None,
    utterance: str | None = None,
) -> list[Path]:
    """All pictures of a finished run, as `draw_pictures` draws them.

    Without `data` and `alignments` the utterance and the words are those of the run's held-out speech as far as it is
    there and has word times, else of the speech shipped with laser_hf.

    Args:
        run_dir: output folder of `train.py`.
        output_dir: where the pictures go; by default `plots` in the run.
        base: the encoder before fine-tuning; by default the one the run started from.
        data: folder of speech, or, for the utterance alone, id of a dataset on the Hub.
        alignments: word times, see `load_words`.
        splits: sub-folders (or splits) of `data` to use.
        utterance: name of the utterance to draw.

    Returns:
        The files written; empty where nothing could be drawn. Warnings say what is missing and why.

    Raises:
        UnfinishedRun: no finished run.
    """
    run_dir = Path(run_dir)
    record = read_record(run_dir)
    recipe, about = record["recipe"], record.get("data", {})
    history = _attempt("loss_terms.png", lambda: read_json(run_dir / HISTORY)["log"])
    encoders = _attempt("anything but the loss terms", lambda: _load_encoders(run_dir, record, base)) or (None, None)
    held_out = located(about["held_out"]) if about.get("held_out") else None
    pair = words = None
    if encoders[0] is not None:
        perturbation, drawn = _perturbation(recipe.get("data", {}))

        def find_pair() -> ViewPair:
            if data is not None:
                return load_pair(data, perturbation, drawn, splits=splits, utterance=utterance)
            where = {"split": about.get("held_out_split"), "name": about.get("held_out_name")}
            return held_out_pair(held_out, perturbation, drawn, utterance=utterance, **where)

        def find_words() -> WordSpeech:
            if data is None and alignments is None:
                return held_out_words(held_out)
            if data is None and held_out is None:
                raise ValueError("the run has no held-out speech; give --data beside --alignments")
            return load_words(data if data is not None else held_out, alignments, splits)

        pair = _attempt("the utterance", find_pair)
        words = _attempt("words.png", find_words)
    return draw_pictures(
        output_dir if output_dir is not None else run_dir / "plots",
        {run_dir.resolve().name: history} if history is not None else {},
        run_title(record),
        before=encoders[0],
        after=encoders[1],
        pair=pair,
        words=words,
        gamma=recipe.get("objective", {}).get("gamma", 0.1),
    )


def run_title(record: Mapping[str, Any]) -> str:
    """What was trained, from the record of a run: "LASER on hubert-base-ls960, 3600 updates"."""
    method = record["method"]
    name = _METHODS.get(method, method.replace("_", " "))
    base = record["base_model"]["name"]
    if record["recipe"]["model"]["model_name_or_path"] == SHIPPED_ENCODER:
        base = "the shipped encoder"
    return f"{name} on {base}, {record['updates']} updates"


def _attempt(what: str, action: Callable[[], _Found]) -> _Found | None:
    """What `action` gives, or `None` and a warning where the data do not allow it."""
    try:
        return action()
    except (OSError, ValueError, KeyError) as error:
        logger.warning("Not drawn: %s (%s)", what, error)
        return None


def _load_encoders(run_dir: Path, record: Mapping[str, Any], base: str | None) -> tuple[SpeechEncoder, SpeechEncoder]:
    model = record["recipe"]["model"]
    revision = None
    if base is None:
        base, revision = located(model["model_name_or_path"]), model.get("model_revision")
        revision = record.get("base_model", {}).get("revision") or revision
    normalize = model.get("do_normalize", False)
    return load_encoder(base, revision, do_normalize=normalize), load_encoder(str(run_dir), do_normalize=normalize)


def _perturbation(options: Mapping[str, Any]) -> tuple[SpeedPitch, dict[str, float]]:
    """The strongest change of speed and pitch that the run drew from: a faster and higher one among equals."""

    def strongest(values: Sequence[float], neutral: float) -> float:
        return max(values, key=lambda value: (round(abs(value - neutral), 9), value))

    speeds, steps = options.get("speed_factors") or [1.1], options.get("pitch_steps") or [2.0]
    return SpeedPitch(speeds, steps, SAMPLE_RATE), {"speed": strongest(speeds, 1.0), "pitch": strongest(steps, 0.0)}


class _Views:
    """Last-layer frames of both views, `(m, dim)` and `(n, dim)`, and how long a frame is."""

    def __init__(self, clean: torch.Tensor, perturbed: torch.Tensor, frame_seconds: float):
        shown = max(2, round(SHOWN_SECONDS / frame_seconds))
        self.clean, self.perturbed, self.shown, self.frame_seconds = clean, perturbed, shown, frame_seconds


def _frames(encoder: SpeechEncoder, pair: ViewPair) -> _Views:
    with frontend_of(encoder) as frontend:
        ((clean, perturbed),) = frontend([pair.clean.cpu(), pair.perturbed.cpu()], (frontend.layers - 1,))
        # Out of inference mode: soft-DTW's alignment is a gradient.
        return _Views(clean.clone(), perturbed.clone(), frontend.frame_seconds)


def _draw_alignment(path: Path, views: dict[str, _Views], pair: ViewPair, gamma: float, heading: str) -> None:
    alignments, columns, seconds = {}, 0, 0.0
    for name, view in views.items():
        unit = [torch.nn.functional.normalize(frames, dim=-1)[None] for frames in (view.clean, view.perturbed)]
        alignments[name] = soft_dtw_alignment(*unit, gamma=gamma)[0, : view.shown]
        # As much of the perturbed view as the frames shown of the clean one are aligned with.
        columns = max(columns, 1 + int((alignments[name].sum(0) > 0.05).nonzero().max()))
        seconds = view.frame_seconds
    alignments = {name: alignment[:, :columns] for name, alignment in alignments.items()}
    title = f"{heading}Soft-DTW alignment of {pair}\nwith its copy at {pair.perturbation}; last layer"
    plot_alignment(alignments, path, seconds, title)


def _draw_similarity(
    path: Path, views: dict[str, _Views], pair: ViewPair, words: WordSpeech | None, heading: str
) -> None:
    spoken = words.spoken.get(Path(pair.utterance).name, []) if words is not None else []
    frames = {name: view.clean[: view.shown] for name, view in views.items()}
    seconds = next(iter(views.values())).frame_seconds
    plot_self_similarity(frames, path, seconds, f"{heading}Self-similarity of {pair}; last layer", spoken)


def _draw_words(path: Path, encoders: Mapping[str, SpeechEncoder], words: WordSpeech, heading: str) -> None:
    pooled = {}
    for name, encoder in encoders.items():
        with frontend_of(encoder) as frontend:
            (frames,) = encode(frontend, words.waveforms, (frontend.layers - 1,))
            first = frontend.shortest / 2 / SAMPLE_RATE
            segments = token_frames(frames, words.tokens, 1 / frontend.frame_seconds, first)
        pooled[name] = torch.cat(mean_pooled(segments))
    title = f"{heading}{len(words.tokens)} spoken words ({words.source}), means of last-layer frames, PCA of each panel"
    plot_words(pooled, words.tokens, path, title)
