"""The demo: LASER on the shipped encoder and speech, and what it does to the words of unseen voices."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import cli
from ..data import decode_audio
from ..data.files import find_audio_files
from ..errors import LaserError
from ..records import TRAINING_RECORD, new_record, read_record, write_json
from ..superb.discrimination import WordReport, long_words, read_alignments, word_discrimination
from ..superb.features import load_features
from ..superb.frame_store import encode
from ..training import parse_options, run_training
from ..training.closing import closing
from . import ENCODER_DIR, SPEECH_DIR

SPLIT = "heldout"
MIN_LETTERS = 4  # shorter words are mostly function words, whose spoken forms vary


def measure(model: Path) -> tuple[WordReport, dict[str, Any], dict[str, Any]]:
    """Word discrimination by an encoder's last layer on the held-out voices; the encoder and the metric of a record."""
    features = load_features(str(model))
    waveforms = {path.stem: decode_audio(path).waveform for path in find_audio_files(SPEECH_DIR / SPLIT)}
    layer = features.layers - 1
    (frames,) = encode(features, waveforms, [layer])
    words = long_words(read_alignments(SPEECH_DIR / "words.tsv", SPLIT).words, MIN_LETTERS)
    report = word_discrimination(frames, words)
    counts = asdict(report)
    metric = {"metric": "word_ap_across", "value": counts.pop("average_precision"), "unit": "fraction"}
    return report, features.describe(str(model)), {**metric, "split": SPLIT, "layer": layer, **counts}


def format_before_after(before: WordReport, after: WordReport) -> str:
    """The table that the demo prints: both reports side by side, and which way is better."""
    rows = (
        ("same-word distance", before.same_distance, after.same_distance, ""),
        ("different-word distance", before.different_distance, after.different_distance, ""),
        ("same / different", before.ratio, after.ratio, "lower is better"),
        ("average precision", before.average_precision, after.average_precision, "higher is better"),
    )
    lines = [f"{'':<24}{'before':>8}{'after':>8}{'change':>9}"]
    for name, old, new, note in rows:
        lines.append(f"{name:<24}{old:>8.3f}{new:>8.3f}{new - old:>+9.3f}  {note}".rstrip())
    pairs = f"{before.same_pairs} same-word and {before.different_pairs} different-word pairs of different speakers"
    tokens = f"{before.words} tokens of {before.vocabulary} words, {before.speakers} speakers"
    return "\n".join([*lines, f"{pairs} ({tokens}; average precision by chance {before.chance:.3f})"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo; unknown arguments go to laser-hf train's options."""
    parser = argparse.ArgumentParser(
        prog="laser-hf demo",
        formatter_class=cli.HelpFormatter,
        description="Fine-tune the shipped encoder with LASER on the shipped speech and compare before and after. "
        "Further options are those of laser-hf train.",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="where everything goes")
    arguments, rest = parser.parse_known_args(argv)
    logging.getLogger("laser_hf").setLevel(logging.WARNING)  # the table is what is to be seen
    output_dir, ours = arguments.output_dir, False
    if (output_dir / TRAINING_RECORD).is_file():
        ours = read_record(output_dir / TRAINING_RECORD).get("preset") == "demo"
    if not ours and any((output_dir / name).exists() for name in ("config.json", "model.safetensors")):
        raise LaserError(f"--output_dir {output_dir} holds a model that is not the demo's; choose another folder")
    began = time.time()
    print("Words of voices that are not trained on, with the encoder as shipped ...", flush=True)
    before, base, base_metric = measure(ENCODER_DIR)
    print("Fine-tuning the top two layers with LASER ...", flush=True)
    fixed = ["--preset", "demo", "--output_dir", str(output_dir), "--use_cpu", *["--overwrite_output_dir"] * ours]
    run_training(parse_options([*fixed, *rest]))
    after, tuned, metric = measure(output_dir)
    record = new_record(
        "discrimination",
        protocol="quick",
        model=tuned,
        metrics=[metric],
        base={**base, "metrics": [base_metric]},
        recipe={"layers": [metric["layer"]], "min_letters": MIN_LETTERS, "speakers": "across"},
        data={"source": SPEECH_DIR, "alignments": SPEECH_DIR / "words.tsv", "splits": [SPLIT]},
        seed=0,
        wall_seconds=time.time() - began,
    )
    write_json(output_dir / "results" / "words.json", record)
    print(f"\n{format_before_after(before, after)}\n{closing(output_dir)}")


if __name__ == "__main__":
    cli.run(main)
