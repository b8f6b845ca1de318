"""`--eval_probe`: word discrimination and phone error of the last layer at every evaluation of a run.

The loss cannot tell a better representation from a collapsing one, and its terms change scale with sigma, alpha and
margin; these numbers do not, so runs with different values can be compared by them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..encoders import SpeechEncoder
from ..records import located
from ..superb.probing.diagnostics import ProbeSettings, ProbeSpeech, encode, frontend_of, load_probe_speech, measure
from .arguments import DataArguments

DEMO = "demo"
DEMO_SPEECH = "{laser_hf}/demo/speech"
# Seconds per evaluation. Words as in the demo's table: few utterances hold few long words.
SETTINGS = ProbeSettings(
    max_utterances=40,
    min_letters=4,
    min_seconds=0.0,
    max_words=200,
    max_pairs=20_000,
    phones_per_speaker=2,
    max_speakers=6,
)
LOGGED = ("word_ap_across", "abx_across", "abx_within")


class EvalProbe:
    """Measures an encoder on a fixed selection of aligned speech; the same weights give the same numbers.

    No random number is drawn from the generators that training uses, and the encoder's mode is restored, so that a
    run with the probe makes the same weights as one without.
    """

    def __init__(self, speech: ProbeSpeech, settings: ProbeSettings = SETTINGS):
        self.speech, self.settings = speech, settings

    def __call__(self, encoder: SpeechEncoder) -> dict[str, float]:
        """`word_ap_across`, `abx_across` and `abx_within`, as far as the speech has words and phones."""
        # Transformers' encoders draw a LayerDrop number in evaluation mode too.
        with torch.random.fork_rng(devices=[]), frontend_of(encoder) as frontend:
            (frames,) = encode(frontend, self.speech.waveforms, (frontend.layers - 1,))
            summary = measure(frames, self.speech, frontend, self.settings).summary()
        return {name: summary[name] for name in LOGGED if name in summary}


def load_eval_probe(data: DataArguments) -> EvalProbe | None:
    """The probe that the options ask for, or `None`.

    Raises:
        ValueError: no held-out speech, files that are missing, or nothing in them that can be measured.
    """
    if not data.eval_probe:
        return None
    if not data.eval_data:
        raise ValueError("--eval_probe measures at every evaluation, and there is none without --eval_data")
    if data.eval_probe == DEMO:
        folder = located(DEMO_SPEECH)
        alignments, root, splits = Path(folder) / "words.tsv", folder, ["heldout"]
    else:
        alignments, root, splits = Path(data.eval_probe), data.eval_probe_data, data.eval_probe_splits
        if root is None:
            root, splits = data.eval_data, splits or ([data.eval_split] if data.eval_split else None)
    try:
        return EvalProbe(load_probe_speech(root, alignments, splits, SETTINGS))
    except FileNotFoundError as error:
        raise ValueError(
            f"--eval_probe {data.eval_probe} cannot be used: {error}. It takes a tab-separated file with word times, "
            f"whose utterances are audio files below --eval_probe_data; or {DEMO} for the shipped speech"
        ) from error


def plot_probe(history: list[dict], path: Path, title: str) -> bool:
    """Draw the probe's values against updates; `False` if the history has none."""
    series = {
        name: [(entry["step"], entry[f"eval_{name}"]) for entry in history if f"eval_{name}" in entry]
        for name in LOGGED
    }
    if not any(series.values()):
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    panels = (
        ("word discrimination, average precision", LOGGED[:1]),
        ("ABX-like phone error (chance 0.5)", LOGGED[1:]),
    )
    for axis, (label, names) in zip(axes, panels, strict=True):
        for name in names:
            if series[name]:
                axis.plot(*zip(*series[name], strict=True), marker=".", label=name)
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
