"""Whole `asr` and `pr` commands on made-up speech, a second each."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from conftest import make_waveform

from laser_hf.superb.__main__ import main
from laser_hf.superb.ctc.training import CtcTrainer

TEXTS = ["THE CAT SAT", "A DOG RAN", "SHE CAN SEE IT", "HELLO WORLD", "WE ALL WENT", "ONE TWO THREE", "THE END"]


def write_chapter(folder: Path, speaker: str, texts: list[str], seed: int) -> None:
    chapter = folder / speaker / "1"
    chapter.mkdir(parents=True)
    lines = []
    for number, text in enumerate(texts):
        name = f"{speaker}-1-{number:04d}"
        wave = make_waveform(0.6 + 0.07 * ((seed + 3 * number) % 8), seed=seed + number)
        soundfile.write(chapter / f"{name}.flac", wave, 16_000)
        if text is not None:
            lines.append(f"{name} {text}")
    (chapter / f"{speaker}-1.trans.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A tree of 9 + 4 + 4 utterances, with one transcript missing, one unknown word and one empty file in training."""
    root = tmp_path_factory.mktemp("transcribed")
    write_chapter(root / "train", "11", [*TEXTS, "THE XYZZYQ", None], 0)
    write_chapter(root / "train", "12", ["ONE MORE"], 40)
    (root / "train" / "12" / "1" / "12-1-0000.flac").write_bytes(b"")
    write_chapter(root / "dev", "13", TEXTS[:4], 20)
    write_chapter(root / "test", "14", TEXTS[3:], 30)
    return root


@pytest.fixture(scope="session")
def lexicon(tmp_path_factory) -> Path:
    """A few words of the CMU dictionary, which takes seconds to read."""
    path = tmp_path_factory.mktemp("lexicon") / "words.txt"
    path.write_text(
        "THE DH AH0\nCAT K AE1 T\nSAT S AE1 T\nA AH0\nDOG D AO1 G\nRAN R AE1 N\nSHE SH IY1\nCAN K AE1 N\nSEE S IY1\n"
        "IT IH1 T\nHELLO HH AH0 L OW1\nWORLD W ER1 L D\nWE W IY1\nALL AO1 L\nWENT W EH1 N T\nONE W AH1 N\nTWO T UW1\n"
        "THREE TH R IY1\nEND EH1 N D\nMORE M AO1 R\n"
    )
    return path


SMALL = {
    "asr": [*("--lstm_size", "6", "--projection_size", "8", "--time_mask_width", "10", "--warp_window", "5")],
    "pr": ["--projection_size", "8"],
}


def command(task, encoder, corpus, output, *words, protocol="quick"):
    return [
        *("--model", str(encoder), "--data", str(corpus), "--output_dir", str(output), "--protocol", protocol),
        *("--train_split", "train", "--dev_split", "dev", "--test_split", "test", "--max_steps", "8"),
        *("--eval_steps", "2", "--batch_size", "2", "--report_to", "none", "--device", "cpu", "--disable_tqdm"),
        *SMALL[task],
        *words,
    ]


def run(task, *arguments, **keywords):
    return main([task, *command(task, *arguments, **keywords)])


@pytest.fixture(scope="session")
def finished_asr(tiny_encoder, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "asr"
    return folder, run("asr", tiny_encoder, corpus, folder)


@pytest.fixture(scope="session")
def finished_pr(tiny_encoder, corpus, lexicon, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pr"
    return folder, run("pr", tiny_encoder, corpus, folder, "--lexicon", str(lexicon))


class Interrupted(Exception):
    """What stops a run in a test."""


def interrupt_at(monkeypatch, update):
    """Stop training before this update."""
    real = CtcTrainer.training_step

    def step(self, *arguments, **keywords):
        if self.state.global_step == update:
            raise Interrupted
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(CtcTrainer, "training_step", step)
