"""The demo: LASER on the shipped encoder and speech, and what it does to the words of unseen voices."""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from pathlib import Path

import soundfile
import torch

from ..encoders import SpeechEncoder, load_encoder
from ..records import provenance, read_json, tensors_digest, write_json
from ..superb.discrimination import Token, WordReport, word_discrimination
from ..training import parse_options, run_training
from . import ENCODER_DIR, SPEECH_DIR
from .words import format_before_after, read_words

BATCH = 8


@torch.no_grad()
def encode(encoder: SpeechEncoder, files: dict[str, Path]) -> dict[str, torch.Tensor]:
    """Last-layer frames `(frames, dim)` of each audio file, by utterance."""
    frames = {}
    names = sorted(files)
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        waves = [torch.from_numpy(soundfile.read(files[name], dtype="float32")[0]) for name in batch]
        lengths = torch.tensor([len(wave) for wave in waves])
        output = encoder(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths)
        frames.update({name: f[:n] for name, f, n in zip(batch, output.frames, output.lengths.tolist(), strict=True)})
    return frames


def measure(model: str | Path, words: list[Token], files: dict[str, Path]) -> WordReport:
    """Word discrimination of the last layer of an encoder."""
    return word_discrimination(encode(load_encoder(model), files), words)


def main(argv: list[str] | None = None) -> None:
    """Run the demo; unknown arguments go to train.py's options."""
    parser = argparse.ArgumentParser(
        prog="python -m laser_hf.demo",
        description="Fine-tune the shipped encoder with LASER on the shipped speech and compare before and after. "
        "Further options are those of train.py.",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="default: %(default)s")
    arguments, rest = parser.parse_known_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)

    words = read_words(SPEECH_DIR / "words.tsv", split="heldout")
    files = {path.stem: path for path in (SPEECH_DIR / "heldout").rglob("*.opus")}
    print("Words of voices that are not trained on, with the encoder as shipped ...", flush=True)
    before = measure(ENCODER_DIR, words, files)
    print("Fine-tuning the top two layers with LASER ...", flush=True)
    run_training(
        parse_options(
            [
                "--preset",
                "demo",
                "--output_dir",
                str(arguments.output_dir),
                "--overwrite_output_dir",
                "--use_cpu",
                *rest,
            ]
        )
    )
    after = measure(arguments.output_dir, words, files)
    write_json(
        arguments.output_dir / "results" / "words.json",
        {
            "task": "same-different word discrimination on the demo's held-out voices, last layer",
            "model": arguments.output_dir.name,
            "weights_sha256": tensors_digest(load_encoder(arguments.output_dir).model.state_dict()),
            "before": asdict(before),
            "after": asdict(after),
            **provenance(),
        },
    )
    record = read_json(arguments.output_dir / "laser_config.json")
    print()
    print(format_before_after(before, after))
    print(
        f"\n{record['updates']} updates, {record['processed_hours']:.2f} hours of speech processed, "
        f"{record['wall_time_seconds']:.0f} seconds of training."
    )
    print(f"Model:  {arguments.output_dir}   (AutoModel.from_pretrained({str(arguments.output_dir)!r}))")
    print(f"Plots:  {arguments.output_dir / 'plots'}")
    print(f"Record: {arguments.output_dir / 'laser_config.json'}")


if __name__ == "__main__":
    main()
