"""Small tasks in both layouts: noise with a sweep in it, which is the query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

SWEEP = np.sin(np.cumsum(np.linspace(0.1, 0.6, 6000))) * 0.3


def noise(seed: int, samples: int = 16_000) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, samples)


@pytest.fixture
def task_folder(tmp_path) -> Path:
    """Two speakers, three recordings of a second; a and b hold the same sweep, q0; nothing holds q1."""
    folder = tmp_path / "data"
    folder.mkdir()
    audio = {name: noise(seed) for seed, name in enumerate("abc")}
    for name in "ab":
        audio[name][5000:11000] += SWEEP
    for name, samples in audio.items():
        soundfile.write(folder / f"{name}.wav", samples, 16_000)
    (folder / "queries.tsv").write_text(
        "query\taudio\tstart_seconds\tduration_seconds\tspeaker\tword\n"
        "q0\ta.wav\t0.3125\t0.375\t1\tsweep\nq1\tc.wav\t0.1\t0.3\t2\tnoise\n"
    )
    (folder / "documents.tsv").write_text("document\taudio\tspeaker\na\ta.wav\t1\nb\tb.wav\t2\nc\tc.wav\t2\n")
    (folder / "targets.tsv").write_text("query\tdocument\nq0\ta\nq0\tb\n")
    return folder


@pytest.fixture
def quesst_folder(tmp_path) -> Path:
    """QUESST 2014 in small, at 8 kHz: four English documents and one Albanian, two English queries a split.

    Document 1 and 2 hold the sweep, that is query 1 of both splits; no document holds query 2; query 3 is Albanian.
    """
    root = tmp_path / "quesst14Database"
    for folder in ("Audio", "dev_queries", "eval_queries", "scoring"):
        (root / folder).mkdir(parents=True)
    documents = [f"quesst14_0000{n}" for n in range(1, 6)]
    for number, name in enumerate(documents):
        samples = noise(number, 8000)
        if number < 2:
            samples[2500:5500] += SWEEP[::2]
        soundfile.write(root / "Audio" / f"{name}.wav", samples, 8000)
    languages = ["nnenglish"] * 4 + ["albanian"]
    _write_list(root / "scoring" / "language_key_utterances.lst", "Audio", documents, languages)
    for number, split in enumerate(("dev", "eval")):
        queries = [f"quesst14_{split}_000{n}" for n in range(1, 4)]
        for position, name in enumerate(queries):
            samples = noise(50 + 10 * number + position, 3000)
            if position == 0:
                samples += SWEEP[::2]
            soundfile.write(root / f"{split}_queries" / f"{name}.wav", samples, 8000)
        _write_list(
            root / "scoring" / f"language_key_{split}.lst", f"{split}_queries", queries, [*languages[:2], "albanian"]
        )
        truth = root / "scoring" / f"groundtruth_quesst14_{split}"
        truth.mkdir()
        excerpts = "".join(f'<excerpt audio_filename="{d}.wav" channel="1" tbeg="0" dur="1"/>\n' for d in documents)
        (truth / f"quesst14_{split}.ecf.xml").write_text(f'<ecf source_signal_duration="5">\n{excerpts}</ecf>\n')
        terms = "".join(f'<term termid="{q}"><termtext>{q}</termtext></term>\n' for q in queries)
        (truth / f"quesst14_{split}.tlist.xml").write_text(f"<termlist>\n{terms}</termlist>\n")
        lines = [f"SPEAKER {d} 1 0.0 1.0 <NA> <NA> SELF <NA>" for d in documents]
        lines += [f"LEXEME {d} 1 0.0 1.0 {queries[0]} lex SELF <NA>" for d in documents[:2]]
        lines += [f"LEXEME {d} 1 0.0 1.0 NO_KEYWORD lex SELF <NA>" for d in documents[2:4]]
        lines += [f"LEXEME {documents[4]} 1 0.0 1.0 {queries[2]} lex SELF <NA>"]
        (truth / f"quesst14_{split}.rttm").write_text("\n".join(lines) + "\n")
    return root


def _write_list(path: Path, folder: str, names: list[str], languages: list[str]) -> None:
    lines = [f"quesst14Database/{folder}/{n}.wav {lang}" for n, lang in zip(names, languages, strict=True)]
    path.write_text("\n".join(lines) + "\n")
