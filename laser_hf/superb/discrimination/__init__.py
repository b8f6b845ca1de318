"""Word discrimination and an ABX-like phone error on speech with word and phone times, quick enough for training runs.

`load_aligned_speech` selects the speech, `measure` measures any features on it; `superb discrimination` is the command.
"""

from .alignments import Token, long_words, read_alignments
from .measuring import (
    SLACK,
    AlignedSpeech,
    DiscriminationSettings,
    load_aligned_speech,
    measure,
    word_average_precision,
)
from .token_distances import mean_pooled, token_frames
from .words import NoComparison, WordReport, word_discrimination

__all__ = [
    "SLACK",
    "AlignedSpeech",
    "DiscriminationSettings",
    "NoComparison",
    "Token",
    "WordReport",
    "load_aligned_speech",
    "long_words",
    "mean_pooled",
    "measure",
    "read_alignments",
    "token_frames",
    "word_average_precision",
    "word_discrimination",
]
