"""Pictures of a run, drawn without a display: `python -m laser_hf.plots RUN`, or `draw_run`; figures one by one."""

from .curves import discrimination_figure, training_figure
from .panels import alignment_figure, principal_components, self_similarity, self_similarity_figure, words_figure
from .run import draw_run, run_title
from .speech import ViewPair, WordSpeech, choose_words, load_pair, load_words

__all__ = [
    "ViewPair",
    "WordSpeech",
    "alignment_figure",
    "choose_words",
    "discrimination_figure",
    "draw_run",
    "load_pair",
    "load_words",
    "principal_components",
    "run_title",
    "self_similarity",
    "self_similarity_figure",
    "training_figure",
    "words_figure",
]
