"""Phone ABX as the ZeroSpeech challenges define it, computed by the package `fastabx` (Python 3.12 or newer)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ...errors import LaserError
from ..features import Features
from ..frame_store import encode
from .speech import AlignedSpeech
from .tokens import Token


def item_lines(phones: Sequence[Token]) -> list[str]:
    """Lines of an item file: every phone with the one before and the one after it, which touch it, as a triphone."""
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    touching = [a.utterance == b.utterance and abs(a.end - b.start) < 0.011 for a, b in pairwise(phones)]
    for place, (before, after) in enumerate(pairwise(touching), start=1):
        if before and after:
            a, phone, b = phones[place - 1 : place + 2]
            names = f"{phone.label} {a.label} {b.label} {phone.speaker}"
            lines.append(f"{phone.utterance} {a.start:.3f} {b.end:.3f} {names}")
    return lines


def zerospeech_abx(
    features: Features, speech: AlignedSpeech, layers: Sequence[int], seed: int = 0
) -> list[dict[str, float]]:
    """ABX errors of triphones that differ in the middle, within and across speakers, of each layer; fractions.

    The limits on tokens are those of ZeroSpeech 2021: 10 in a cell, 5 of X across speakers. `LaserError` if `fastabx`
    is missing, or the speech has no two such triphones.
    """
    try:
        import fastabx
    except ModuleNotFoundError as error:
        raise LaserError("--zerospeech needs fastabx and Python 3.12 or newer: pip install 'laser-hf[abx]'") from error
    how = {"max_size_group": 10, "max_x_across": 5, "frequency": round(1 / features.frame_seconds), "seed": seed}
    found = []
    with TemporaryDirectory() as folder:
        item = Path(folder) / "phones.item"
        item.write_text("\n".join(item_lines(speech.all_phones)) + "\n", encoding="utf-8")
        for frames in encode(features, speech.waveforms, layers):
            for name, states in frames.items():
                torch.save(states, Path(folder) / f"{name}.pt")
            errors = {}
            for speaker in ("within", "across"):
                try:
                    error = fastabx.zerospeech_abx(item, folder, speaker=speaker, device="cpu", progress=False, **how)
                except (ValueError, IndexError) as wrong:
                    raise LaserError(f"no ABX {speaker} speakers on these phones: {wrong}; give more speech") from wrong
                errors[f"zerospeech_abx_{speaker}"] = float(error)
            found.append(errors)
    return found
