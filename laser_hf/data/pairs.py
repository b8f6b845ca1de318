"""One utterance becomes a pair of views; pairs become a padded batch; skipped utterances are counted."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..errors import LaserError
from ..transfer import read_later
from .decode import SAMPLE_RATE, BadAudio, decode_audio
from .perturbation import Perturbation, draw_generator

logger = logging.getLogger(__name__)
Pair = dict[str, Any]


@contextlib.contextmanager
def in_memory(what: str, mend: str = "give --max_seconds or --crop_seconds") -> Iterator[None]:
    """Compute something; the `LaserError` that there is not enough memory names `what` needs it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise LaserError(f"{what} does not fit into memory; {mend}") from error


@dataclass(eq=False)
class PairTransform:
    """Decodes utterances and perturbs them.

    A pair depends on `seed`, the epoch and the utterance's id alone. The epoch lies in shared memory: `set_epoch` in
    the main process reaches dataloader workers that are already running. Call it before the epoch's first batch.

    Args:
        perturbation: makes the perturbed view.
        seed: of all draws.
        min_seconds: shorter utterances are skipped.
        max_seconds: longer utterances are skipped; `None`, as in the paper, for no limit. Below `min_seconds` it is a
            `LaserError`, as `crop_seconds` is.
        crop_seconds: longer utterances are cut to this length before they are perturbed, each epoch at another place.
        min_samples: pairs with a shorter view are skipped; the receptive field of the encoder.
        perturb: `False` leaves `perturbed` at `None`: the device makes it from `drawn` with `begin_pairs`.
    """

    perturbation: Perturbation
    seed: int = 0
    _: KW_ONLY
    min_seconds: float = 0.1
    max_seconds: float | None = None
    crop_seconds: float | None = None
    min_samples: int = 400
    perturb: bool = True

    def __post_init__(self) -> None:
        shortest = max(self.min_seconds, 1 / SAMPLE_RATE)
        for name, value in {"max_seconds": self.max_seconds, "crop_seconds": self.crop_seconds}.items():
            if value is not None and not shortest <= value < float("inf"):
                raise LaserError(f"{name} must be at least min_seconds ({self.min_seconds:g}), got {value:g}")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch of the next draws, 0-based."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, here and in all running workers."""
        self._epoch.fill_(epoch)

    def pair(self, utterance_id: str, audio: Any, epoch: int | None = None) -> Pair:
        """Both views of one utterance, whose `audio` is as `decode_audio` takes it; `epoch` if not the one set.

        Returns:
            `id`; `clean` and `perturbed`, `(samples,)` float32 at 16 kHz; `drawn`, the perturbation's parameters;
            `skip`, empty. If the audio cannot be used: no views, nothing drawn, and `skip` is `"kind: reason"`.

        A `RuntimeError` says for which utterance the perturbation failed.
        """
        epoch = self.epoch if epoch is None else epoch
        shortest = max(self.min_seconds, self.min_samples / SAMPLE_RATE)
        try:
            with in_memory(f"utterance {utterance_id}"):
                clean = decode_audio(audio, min_seconds=shortest, max_seconds=self.max_seconds).waveform
                spare = 0 if self.crop_seconds is None else len(clean) - round(self.crop_seconds * SAMPLE_RATE)
                if spare > 0:
                    start = int(draw_generator(self.seed, epoch, f"{utterance_id}\ncrop").integers(spare + 1))
                    # A copy: a view would carry the whole utterance from the worker to the main process.
                    clean = clean[start : start + len(clean) - spare].clone()
                drawn = self.perturbation.draw_for(draw_generator(self.seed, epoch, utterance_id), utterance_id)
                pair = {"id": utterance_id, "clean": clean, "perturbed": None, "drawn": drawn, "skip": ""}
                if not self.perturb:
                    return pair
                try:
                    view = self.perturbation.apply(clean, **drawn)
                except (LaserError, MemoryError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    raise RuntimeError(f"perturbing {utterance_id!r} with {drawn} failed: {error}") from error
                return _completed(pair, view, bool(view.isfinite().all()), self.min_samples)
        except BadAudio as error:
            return _skipped(utterance_id, error)


def _skipped(utterance_id: str, error: BadAudio) -> Pair:
    return {"id": utterance_id, "clean": None, "perturbed": None, "drawn": {}, "skip": str(error)}


def _completed(pair: Pair, view: torch.Tensor, finite: bool, min_samples: int) -> Pair:
    """The pair with its perturbed view; skipped if that cannot be used."""
    about = f"the perturbed view {pair['drawn']} has"
    if len(view) < min_samples:
        reason = f"{about} {len(view)} samples, the encoder needs {min_samples}"
        return _skipped(pair["id"], BadAudio("too_short" if len(view) else "empty", reason))
    if not finite:
        return _skipped(pair["id"], BadAudio("nan", f"{about} samples that are NaN or infinite"))
    return {**pair, "perturbed": view}


def begin_pairs(pairs: Sequence[Pair], perturbation: Perturbation, min_samples: int = 400) -> Callable[[], list[Pair]]:
    """Begin to make the perturbed views that usable pairs lack, where the clean ones lie, in one batched call.

    The function returned gives the complete pairs, and waits if the device is not done. Pairs whose view cannot be used
    are skipped, as `PairTransform.pair` skips them.
    """
    if not (missing := [pair for pair in pairs if pair["perturbed"] is None]):
        return lambda: list(pairs)
    try:
        longest = max(missing, key=lambda pair: len(pair["clean"]))["id"]
        with in_memory(f"an update whose longest utterance is {longest}"):
            views = perturbation.apply_batch([pair["clean"] for pair in missing], [pair["drawn"] for pair in missing])
    except BadAudio as error:
        skipped = _skipped(missing[0]["id"], error)
        alone = [begin_pairs([pair], perturbation, min_samples) for pair in pairs] if len(pairs) > 1 else []
        return lambda: [one for end in alone for one in end()] or [skipped]
    finite = read_later(torch.stack([view.isfinite().all() for view in views]))

    def end() -> list[Pair]:
        made = zip(views, finite().tolist(), strict=True)
        return [_completed(pair, *next(made), min_samples) if pair["perturbed"] is None else pair for pair in pairs]

    return end


def pad_pairs(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One batch of pairs, zero-padded at the end. Skipped pairs get no row; a batch may have no rows at all.

    Returns:
        `clean` `(batch, samples)` float32 and `clean_lengths` `(batch,)` int64; `perturbed` and `perturbed_lengths`,
        likewise, or both `None` if the device is to make the views; `ids` and `drawn`, one per row; `skipped`, a list
        of `(id, "kind: reason")`.
    """
    kept = [pair for pair in pairs if not pair["skip"]]
    batch: dict[str, Any] = {"ids": [pair["id"] for pair in kept], "drawn": [pair["drawn"] for pair in kept]}
    batch["skipped"] = [(pair["id"], pair["skip"]) for pair in pairs if pair["skip"]]
    for view in ("clean", "perturbed"):
        waveforms = [pair[view] for pair in kept]
        batch[view] = batch[f"{view}_lengths"] = None
        if all(waveform is not None for waveform in waveforms):
            batch[view] = pad_sequence(waveforms, batch_first=True) if waveforms else torch.zeros(0, 0)
            batch[f"{view}_lengths"] = torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.int64)
    return batch


class SkipLog:
    """Counts skipped utterances and logs each of them once."""

    def __init__(self) -> None:
        self._kinds, self._times = {}, 0  # the kind of each utterance

    def update(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Add `batch["skipped"]`: ids with `"kind: reason"`."""
        for utterance, reason in skipped:
            self._times += 1
            if utterance not in self._kinds:
                self._kinds[utterance] = reason.partition(":")[0]
                logger.warning("skipped utterance %s: %s", utterance, reason)

    def state_dict(self) -> dict[str, Any]:
        """The counts as JSON values, for a checkpoint or another process."""
        return {"kinds": dict(self._kinds), "times": self._times}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add the counts of another log."""
        self._kinds.update(state["kinds"])
        self._times += state["times"]

    def summary(self) -> dict[str, Any]:
        """Different `utterances` skipped so far, `times` over all epochs, and different utterances `by_kind`."""
        by_kind = dict(sorted(Counter(self._kinds.values()).items()))
        return {"utterances": len(self._kinds), "times": self._times, "by_kind": by_kind}
