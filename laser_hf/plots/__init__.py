"""Pictures of a run, drawn without a display: `laser-hf plots RUN`, or `draw_run`; figures one by one."""

from .panels import alignment_figure, discrimination_figure, self_similarity_figure, training_figure, words_figure
from .run import draw_run, run_title

__all__ = [
    "alignment_figure",
    "discrimination_figure",
    "draw_run",
    "run_title",
    "self_similarity_figure",
    "training_figure",
    "words_figure",
]
