"""Characters of SUPERB's ASR task: its 32-entry vocabulary, transcripts to CTC targets and back.

The specials come first, as fairseq's dictionaries have them; the characters follow in the order of their frequency in
LibriSpeech. `<s>` is the CTC blank.
"""

from __future__ import annotations

from collections.abc import Sequence

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
VOCABULARY = (*SPECIALS, *"|ETAONIHSRDLUMCWFGYPBVK'XJQZ")
BLANK, PAD, END, UNKNOWN = range(4)
WORD_END = "|"
_INDEX = {symbol: index for index, symbol in enumerate(VOCABULARY)}


def encode(transcript: str) -> list[int]:
    """CTC target of a transcript: its upper-case characters, `|` after every word, and `</s>`.

    Characters that the vocabulary lacks become `<unk>`.

    Raises:
        ValueError: no words in it.
    """
    words = transcript.upper().split()
    if not words:
        raise ValueError("the transcript has no words")
    characters = WORD_END.join(words) + WORD_END
    return [_INDEX.get(character, UNKNOWN) for character in characters] + [END]


def symbols(ids: Sequence[int]) -> list[str]:
    """Vocabulary entries of `ids` without blank and `</s>`: the units of SUPERB's unit error rate, `|` included."""
    return [VOCABULARY[index] for index in ids if index not in (BLANK, END)]


def words(units: Sequence[str]) -> str:
    """Words, separated by single spaces, of a sequence of characters and `|`."""
    return " ".join("".join(units).replace(WORD_END, " ").split())
