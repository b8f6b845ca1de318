"""Pairs to padded batches, and an account of what was left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

logger = logging.getLogger(__name__)


class PairCollator:
    """Pads pairs with zeros and reports those that were skipped.

    A batch in which nothing was usable is still valid: its tensors have no rows.
    """

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate items of :meth:`laser_hf.data.pairs.PairTransform.pair`.

        Returns:
            - ``clean`` ``(batch, samples)`` float32, zero-padded at the end, and ``clean_lengths``
              ``(batch,)`` int64, samples;
            - ``perturbed`` and ``perturbed_lengths``, likewise, with a length of their own; both None where
              the pairs are yet to be perturbed (:class:`laser_hf.data.PairTransform` with ``perturb=False``);
            - ``ids``, a list of text, and ``drawn``, a list of the perturbations' parameters, one a row;
            - ``skipped``, a list of ``(id, "kind: reason")``;
            - ``seconds``, the time that ``decode`` and ``perturb`` took, summed over all pairs.
        """
        kept = [pair for pair in pairs if not pair["skip"]]
        batch: dict[str, Any] = {}
        for view in ("clean", "perturbed"):
            waveforms = [pair[view] for pair in kept]
            if any(waveform is None for waveform in waveforms):
                batch[view] = batch[f"{view}_lengths"] = None
                continue
            batch[view] = (
                torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True) if waveforms else torch.zeros(0, 0)
            )
            batch[f"{view}_lengths"] = torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.int64)
        batch["ids"] = [pair["id"] for pair in kept]
        batch["drawn"] = [pair.get("drawn", {}) for pair in kept]
        batch["skipped"] = [(pair["id"], pair["skip"]) for pair in pairs if pair["skip"]]
        batch["seconds"] = {
            part: sum(pair.get("seconds", {}).get(part, 0.0) for pair in pairs) for part in ("decode", "perturb")
        }
        return batch


class SkipLog:
    """Counts skipped utterances by kind and names each of them once in the log. For the main process."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self._times: Counter[str] = Counter()

    def update(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Take note of ``batch["skipped"]``: pairs of an id and ``"kind: reason"``."""
        for utterance, reason in skipped:
            kind = reason.partition(":")[0]
            self._times[kind] += 1
            if utterance not in self._kinds:
                self._kinds[utterance] = kind
                logger.warning("skipped utterance %s: %s", utterance, reason)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain JSON values, for a checkpoint or another process."""
        return {"kinds": dict(self._kinds), "times": dict(self._times)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add what another log has counted."""
        self._kinds.update(state["kinds"])
        self._times.update(state["times"])

    def __len__(self) -> int:
        """Number of different utterances skipped so far."""
        return len(self._kinds)

    def summary(self) -> dict[str, Any]:
        """What was skipped so far, for a log or a JSON record.

        Returns:
            ``utterances``, how many different ones; ``times``, how often over all epochs; ``by_kind``,
            different utterances of each kind.
        """
        by_kind = Counter(self._kinds.values())
        return {
            "utterances": len(self._kinds),
            "times": self._times.total(),
            "by_kind": dict(sorted(by_kind.items())),
        }
