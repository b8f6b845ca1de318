"""`--eval_alignments`: word discrimination and phone error of the last layer at every evaluation of a run.

The loss cannot tell a better representation from a collapsing one, and its terms change scale with sigma, alpha and
margin; these numbers do not, so runs with different values can be compared by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..encoders import SpeechEncoder
from ..errors import LaserError
from ..records import located
from ..superb.discrimination import AlignedSpeech, DiscriminationSettings, load_aligned_speech, measure
from ..superb.features import EncoderFeatures
from .arguments import DataArguments

DEMO = "demo"
DEMO_SPEECH = "{laser_hf}/demo/speech"
SETTINGS = DiscriminationSettings(
    max_utterances=40,
    min_letters=4,
    min_seconds=0.0,
    max_words=200,
    max_pairs=20_000,
    phones_per_speaker=2,
    max_speakers=6,
)
"""Seconds per evaluation. Words as in the demo's table: few utterances hold few long words."""
LOGGED = ("word_ap_across", "abx_across", "abx_within")


class DiscriminationEvaluator:
    """Measures an encoder on a fixed selection of aligned speech; the same weights give the same numbers.

    It draws no random number from the generators that training uses, and restores the encoder's mode, so that a run
    makes the same weights with and without it.

    Args:
        speech: with word times, phone times or both; see `laser_hf.superb.discrimination.load_aligned_speech`.
        settings: how much of it is compared.
    """

    def __init__(self, speech: AlignedSpeech, settings: DiscriminationSettings = SETTINGS):
        self.speech, self.settings = speech, settings

    def __call__(self, encoder: SpeechEncoder) -> dict[str, float]:
        """`word_ap_across`, `abx_across` and `abx_within`, as far as the speech has words and phones."""
        (report,) = measure(EncoderFeatures(encoder), self.speech, settings=self.settings)
        summary = report.summary()
        return {name: summary[name] for name in LOGGED if name in summary}


def load_evaluator(data: DataArguments) -> DiscriminationEvaluator | None:
    """The evaluator that the options ask for, or `None`.

    Raises:
        LaserError: no held-out speech, files that are missing, or nothing in them that can be measured.
    """
    if not data.eval_alignments:
        return None
    if not data.eval_data:
        raise LaserError("--eval_alignments measures at every evaluation, and there is none without --eval_data")
    splits: Sequence[str] | None
    if data.eval_alignments == DEMO:
        folder = located(DEMO_SPEECH)
        alignments, root, splits = str(Path(folder) / "words.tsv"), folder, ["heldout"]
    else:
        alignments, root, splits = data.eval_alignments, data.eval_alignments_data, data.eval_alignments_splits
        if root is None:
            root, splits = data.eval_data, splits or ([data.eval_split] if data.eval_split else None)
    try:
        return DiscriminationEvaluator(load_aligned_speech(root, alignments, splits, SETTINGS))
    except LaserError as error:
        raise LaserError(
            f"--eval_alignments {data.eval_alignments} cannot be used: {error}. It takes a tab-separated file with "
            f"word times of audio files below --eval_alignments_data, or {DEMO} for the shipped speech"
        ) from error
