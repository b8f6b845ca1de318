"""The experiments: points that each change one small recipe, and the tables that show them.

The recipe is that of the demo preset on short utterances of Mini-LibriSpeech, so that a point takes minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ENCODER = "laser_hf/demo/encoder"
SEEDS = (1, 2, 3)
TRAIN_SPLIT, DEV_SPLIT, TEST_SPLIT = "train-clean-5", "heldout-clean-5", "test-other-100"

MAX_SECONDS = 9.0
"""Training leaves out longer utterances. Most of LibriSpeech's last 12 s or more and would take far longer."""

COMMON: dict[str, Any] = {
    "max_eval_samples": 32,
    "max_steps": 60,
    "warmup_steps": 15,
    "eval_steps": 20,
    "save_steps": 30,
    "logging_steps": 5,
    "per_device_train_batch_size": 4,
}


@dataclass(frozen=True)
class Point:
    """One recipe.

    Attributes:
        name: of its folder.
        label: in tables.
        tables: those that show it: "methods" (like the paper's Tables 1 and 2), "collapse" (Table 3), "sensitivity";
            "design" and "rates" of the second round (`PLAN.md`).
        options: of train.py, on top of `COMMON`; `None` for the encoder as it is.
        preset: of train.py.
        group: what is varied, for the sensitivity table.
        method: its name in the table of methods, if that is not `label`.
        encoder: that training starts from: "shipped" or "plain" (pre-trained without perturbation).
        seeds: of its runs.
        whitened: measure its last layer whitened by PCA (`whitened.py`).
    """

    name: str
    label: str
    tables: tuple[str, ...]
    options: dict[str, Any] | None = field(default_factory=dict)
    preset: str = "demo"
    group: str = ""
    method: str = ""
    encoder: str = "shipped"
    seeds: tuple[int, ...] = SEEDS
    whitened: bool = False

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return self.options is not None

    @property
    def stages(self) -> tuple[str, ...]:
        """What is run for it, in order."""
        heads = ("pr", "asr") if "methods" in self.tables else ()
        more = ("words", "sid") if "design" in self.tables else ()
        layers = ("layers",) if heads and more else ()
        return (("train",) if self.trained else ()) + ("qbe", *more, *heads, *layers)


def _varied(group: str, name: str, label: str, **options: Any) -> Point:
    return Point(name, label, ("sensitivity",), options, group=group)


POINTS = (
    Point("base", "the encoder as it is", ("methods", "collapse", "sensitivity"), None),
    Point("laser", "LASER", ("methods", "collapse", "sensitivity"), group="as in the preset"),
    Point("soft-dtw", "soft-DTW alone", ("collapse",), {"objective": "soft_dtw"}),
    Point("score", "SCORE", ("methods",), preset="demo-score"),
    Point(
        "spin", "Spin", ("methods",), preset="demo-spin",
        # As much speech an update as eight pairs of the others have.
        options={"seconds_per_update": 44.0},
    ),
    _varied("alpha (0.15)", "alpha-0.05", "0.05", alpha=0.05),
    _varied("alpha (0.15)", "alpha-0.4", "0.4", alpha=0.4),
    # The best alpha of the first pass. CTC heads show it on tasks that it was not chosen on.
    Point(
        "alpha-1", "1.0", ("methods", "sensitivity"), {"alpha": 1.0}, group="alpha (0.15)", method="LASER, alpha 1"
    ),
    _varied("alpha (0.15)", "alpha-3", "3.0", alpha=3.0),
    _varied("sigma (1)", "sigma-5", "5", sigma=5),
    _varied("margin (1.0)", "margin-1.4", "1.4", margin=1.4),
    _varied("offsets in the IDM term (in frames)", "idm-scaled", "as if all had 275", reference_frames=275),
    _varied("offsets in the IDM term (in frames)", "idm-scaled-600", "as if all had 600", reference_frames=600),
    _varied("Transformer layers trained (2 of 4)", "layers-1", "1", trainable_layers=1),
    _varied("Transformer layers trained (2 of 4)", "layers-4", "4", trainable_layers=4),
    _varied("`encoder.layer_norm` (frozen)", "layer-norm", "trained", train_encoder_layer_norm=True),
    _varied("distance of the IDM term (euclidean)", "sqeuclidean", "sqeuclidean", distance="sqeuclidean"),
    _varied("speed (0.9, 1, 1.1)", "speed-1", "1", speed_factors=[1.0]),
    _varied("speed (0.9, 1, 1.1)", "speed-wide", "0.8 … 1.2", speed_factors=[0.8, 0.85, 0.9, 1.0, 1.1, 1.15, 1.2]),
    _varied("pitch (±2 semitones)", "pitch-0", "0", pitch_steps=[0.0]),
    _varied("pitch (±2 semitones)", "pitch-4", "±4", pitch_steps=[-4.0, 4.0]),
    # Both views are the same waveform; only dropout differs.
    _varied("speed and pitch", "unperturbed", "neither", speed_factors=[1.0], pitch_steps=[0.0]),
    _varied(
        "speed and pitch, at alpha 1", "alpha-1-unperturbed", "neither", alpha=1.0, speed_factors=[1.0],
        pitch_steps=[0.0],
    ),
    _varied(
        "pairs an update, same speech (8)", "batch-16", "16, 30 updates",
        pairs_per_update=16, max_steps=30, warmup_steps=8, eval_steps=10, save_steps=15,
    ),
)  # fmt: skip


WHOLE_HELD_OUT = {"max_eval_samples": 64, "eval_steps": 60}
"""Held-out utterances are whole in the second round. Only ten are at most `MAX_SECONDS` long."""
EQUAL_VIEWS = {"perturbations": ["speed_pitch"], "speed_factors": [1.0], "pitch_steps": [0.0]}
"""Both views are the same waveform."""
IDM_ALONE = {"objective": "experiments.objectives:IdmOnly"}
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "laser-1": ("LASER, alpha 1", "demo", {"alpha": 1.0}),
    "laser": ("LASER, preset", "demo", {}),
    "idm-1": ("IDM alone, alpha 1", "demo", {**IDM_ALONE, "alpha": 1.0}),
    "idm": ("IDM alone, preset", "demo", IDM_ALONE),
    "soft-dtw": ("soft-DTW alone", "demo", {"objective": "soft_dtw"}),
    # Views of this objective must be equally long.
    "mse-idm": ("MSE + IDM", "demo", {"objective": "mse_idm", "alpha": 1.0, "speed_factors": [1.0]}),
    "score": ("SCORE", "demo-score", {}),
    "spin": ("Spin", "demo-spin", {"seconds_per_update": 44.0}),
}
"""Methods of the second round: label, preset, options."""
WITH_HEADS = {"laser-1-perturbed", "laser-1-equal", "idm-1-perturbed", "score-perturbed", "spin-perturbed"}


def _design(encoder: str) -> list[Point]:
    """Every method with perturbed and with equal views, on one encoder."""
    found = [Point(encoder, "the encoder as it is", ("design", "methods"), None, encoder=encoder)]
    found.append(
        Point(
            f"{encoder}-whitened", "its last layer whitened", ("design",), None, encoder=encoder, seeds=SEEDS[:1],
            whitened=True,
        )
    )  # fmt: skip
    for method, (label, preset, options) in METHODS.items():
        for views, more in (("perturbed", {}), ("equal", EQUAL_VIEWS)):
            shown = ("design", "methods") if f"{method}-{views}" in WITH_HEADS else ("design",)
            name = f"{encoder}-{method}-{views}"
            more = {**WHOLE_HELD_OUT, **more}
            found.append(Point(name, label, shown, {**options, **more}, preset, views, encoder=encoder))
    return found


def _rates() -> list[Point]:
    """LASER at alpha 1 on the plain encoder: learning rate and number of updates, one seed."""
    return [
        Point(
            f"plain-rate-{rate:g}-{updates}", f"{rate:g}", ("rates",),
            {
                "alpha": 1.0, "learning_rate": rate, "max_steps": updates, "warmup_steps": updates // 4,
                **WHOLE_HELD_OUT, "eval_steps": updates, "save_steps": updates // 2,
            },
            group=str(updates), encoder="plain", seeds=SEEDS[:1],
        )
        for rate in (5e-5, 2e-4, 8e-4)
        for updates in (30, 60, 180)
    ]  # fmt: skip


SECOND = (*_design("plain"), *_design("shipped"), *_rates())
"""Points of the second round, as `PLAN.md` has them."""


def point(name: str) -> Point:
    """The point of that name.

    Raises:
        ValueError: there is none.
    """
    for found in (*POINTS, *SECOND):
        if found.name == name:
            return found
    raise ValueError(f"unknown point {name!r}; there are {', '.join(found.name for found in (*POINTS, *SECOND))}")
