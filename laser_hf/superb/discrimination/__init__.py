"""Word discrimination and an ABX-like phone error on speech with word and phone times, quick enough for training runs.

`load_aligned_speech` selects the speech, `measure` measures any features on it; `superb discrimination` is the command.
"""

from .comparisons import NoComparison, WordReport, word_discrimination
from .speech import SLACK, AlignedSpeech, DiscriminationSettings, load_aligned_speech
from .task import measure
from .tokens import Token, long_words, mean_pooled, read_alignments, token_frames

__all__ = [
    "SLACK", "AlignedSpeech", "DiscriminationSettings", "NoComparison", "Token", "WordReport", "load_aligned_speech",
    "long_words", "mean_pooled", "measure", "read_alignments", "token_frames", "word_discrimination",
]  # fmt: skip
