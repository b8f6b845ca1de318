"""Word discrimination and an ABX-like phone error on speech with word and phone times, quick enough for training."""

from .comparisons import NoComparison, WordReport, word_discrimination
from .speech import SLACK, DiscriminationSettings, load_aligned_speech
from .task import measure
from .tokens import AlignedSpeech, Token, long_words, read_alignments, token_frames

__all__ = [
    "SLACK", "AlignedSpeech", "DiscriminationSettings", "NoComparison", "Token", "WordReport", "load_aligned_speech",
    "long_words", "measure", "read_alignments", "token_frames", "word_discrimination",
]  # fmt: skip
