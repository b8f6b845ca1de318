"""Pictures of a run, drawn without a display: `python -m laser_hf.plots RUN`, or one by one from here."""

from .alignment import plot_alignment
from .curves import plot_training
from .run import UnfinishedRun, draw_pictures, draw_run, run_title
from .similarity import plot_self_similarity, self_similarity
from .speech import ViewPair, WordSpeech, held_out_words, load_pair, load_words, source_name
from .word_map import choose_words, plot_words, principal_components

__all__ = [
    "UnfinishedRun",
    "ViewPair",
    "WordSpeech",
    "choose_words",
    "draw_pictures",
    "draw_run",
    "held_out_words",
    "load_pair",
    "load_words",
    "plot_alignment",
    "plot_self_similarity",
    "plot_training",
    "plot_words",
    "principal_components",
    "run_title",
    "self_similarity",
    "source_name",
]
