"""A finished run of a tiny encoder, word times for its speech, and a way to look at pictures."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from laser_hf.training import parse_options, run_training

WORDS = ("river", "garden", "letter", "winter")


@pytest.fixture(scope="session")
def word_times(small_tree, tmp_path_factory) -> Path:
    """Two words of 0.2 s in each utterance of `small_tree`, the same ones for every speaker."""
    rows = ["utterance\tword\tstart_seconds\tduration_seconds"]
    for file in sorted(small_tree.rglob("*.flac")):
        take = int(file.stem[-1])
        rows += [f"{file.stem}\t{WORDS[(take + place) % 4]}\t{0.05 + 0.21 * place:.2f}\t0.20" for place in range(2)]
    path = tmp_path_factory.mktemp("times") / "alignments.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def finished_run(tiny_encoder, small_tree, tmp_path_factory) -> Path:
    """Output folder of a run of three updates, without pictures."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run_training(
        parse_options(
            [
                "--preset", "demo", "--model_name_or_path", str(tiny_encoder), "--train_data", str(small_tree),
                "--train_split", "train", "--eval_data", str(small_tree), "--max_eval_samples", "2",
                "--output_dir", str(folder), "--max_steps", "3", "--warmup_steps", "1", "--learning_rate", "1e-2",
                "--pairs_per_update", "2", "--per_device_train_batch_size", "2", "--eval_steps", "3",
                "--logging_steps", "1", "--save_steps", "3", "--report_to", "none", "--use_cpu",
                "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--plots", "false", "--projection_dim", "8",
            ]
        )
    )  # fmt: skip
    return folder


def assert_drawn(path: Path) -> None:
    """A PNG of some size with more than one colour in it."""
    picture = matplotlib.image.imread(path)
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.02
