"""What was recognised, as files to read and to score again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jiwer

from .ctc_tasks import Decoded

WORST = 20
"""Utterances shown in `worst.txt`."""


def write_decoded(
    folder: Path, decoded: Sequence[Decoded], written: Callable[[Sequence[str]], str], task: str, worst: int = WORST
) -> None:
    """Write `hyp.txt` and `ref.txt` (one line `words (id)` an utterance, the trn form) and `worst.txt`.

    `worst.txt` aligns hypothesis and reference of the utterances with the highest error rates, worst first: `S` marks a
    substitution, `D` a deletion, `I` an insertion.

    Args:
        folder: of the split; made here.
        decoded: utterances.
        written: units to words or phones separated by blanks.
        task: named in `worst.txt`.
        worst: how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hypotheses = [written(item.hypothesis) for item in decoded]
    references = [written(item.reference) for item in decoded]
    for name, lines in (("hyp", hypotheses), ("ref", references)):
        text = "".join(f"{line} ({item.id})\n" for line, item in zip(lines, decoded, strict=True))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    outputs = [jiwer.process_words(ref, hyp) for ref, hyp in zip(references, hypotheses, strict=True)]
    order = sorted(range(len(decoded)), key=lambda index: (-outputs[index].wer, decoded[index].id))[:worst]
    unit = "words" if task == "asr" else "phones"
    shown = [f"The {len(order)} of {len(decoded)} utterances with the highest error rates ({unit})\n"]
    for index in order:
        output = outputs[index]
        counts = f"{output.substitutions} substituted, {output.deletions} deleted, {output.insertions} inserted"
        alignment = jiwer.visualize_alignment(output, show_measures=False, skip_correct=False, line_width=110)
        alignment = alignment.partition("\n")[2].strip("\n")  # its first line numbers the only sentence
        shown.append(f"{decoded[index].id}: {100 * output.wer:.0f} % ({counts})\n{alignment}\n")
    (folder / "worst.txt").write_text("\n".join(shown), encoding="utf-8")
