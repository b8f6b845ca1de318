"""How far perturbed words lie from the words as they are: the invariance that LASER trains, measured directly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..features import VIEWS, Features, perturbed
from ..frame_store import encode
from ..qbe.scoring import average_precision
from .comparisons import dtw_distances, word_pairs
from .speech import AlignedSpeech, DiscriminationSettings
from .tokens import token_frames


def invariance(
    features: Features, speech: AlignedSpeech, layers: Sequence[int], settings: DiscriminationSettings, **times: float
) -> list[dict[str, dict[str, float]]]:
    """Of each layer two measures by view, on the words of `speech`; `times` are as for `token_frames`.

    * `perturbed_word_ap_across`: word discrimination across speakers of perturbed words among words as they are.
    * `view_distance`: mean distance of a word from its perturbed copy, over the mean distance of different words of
      different speakers. 0: the perturbation does not show; 1: it moves a word as far as another word lies.

    Raises:
        NoComparison: as `word_discrimination`.
    """
    tokens = sorted(speech.words)
    first, second, same = word_pairs(tokens, settings.max_pairs, settings.seed, across=True)
    own, count = np.arange(len(tokens)), len(tokens)
    clean = [token_frames(frames, tokens, **times) for frames in encode(features, speech.waveforms, layers)]
    apart = [dtw_distances(words, first[~same], second[~same]).mean() for words in clean]
    found: list[dict[str, dict[str, float]]] = [{"perturbed_word_ap_across": {}, "view_distance": {}} for _ in layers]
    for view, (speed, _) in VIEWS.items():
        waveforms = {name: perturbed(waveform, view) for name, waveform in speech.waveforms.items()}
        moved = [replace(token, start=token.start / speed, duration=token.duration / speed) for token in tokens]
        for place, frames in enumerate(encode(features, waveforms, layers, view)):
            words = clean[place] + token_frames(frames, moved, **times)
            distances = dtw_distances(words, first + count, second)
            found[place]["perturbed_word_ap_across"][view] = average_precision(-distances, same)
            found[place]["view_distance"][view] = float(dtw_distances(words, own + count, own).mean() / apart[place])
    return found
