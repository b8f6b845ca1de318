"""Pictures of a run, drawn without a display: `laser-hf plots RUN`, or `draw_run`; figures one by one."""

from .alignment import alignment_figure, shares_beyond
from .curves import training_figure
from .panels import self_similarity_figure, silhouette, words_figure
from .run import draw_run, run_title

__all__ = [
    "alignment_figure", "draw_run", "run_title", "self_similarity_figure", "shares_beyond", "silhouette",
    "training_figure", "words_figure",
]  # fmt: skip
