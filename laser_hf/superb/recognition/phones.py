"""Phones of SUPERB's PR task: 71 ARPAbet symbols with stress, 74 classes with the specials.

`<pad>` is the CTC blank. `SIL` and `SPN` have a class but never occur in a target: no silence is inserted.
"""

from __future__ import annotations

from collections.abc import Sequence

_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N"),
    *("NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
SPECIALS = ("<pad>", "<eos>", "<unk>")
PHONES = ("SIL", "SPN", *sorted([*(vowel + stress for vowel in _VOWELS for stress in "012"), *_CONSONANTS]))
VOCABULARY = (*SPECIALS, *PHONES)
BLANK, END, UNKNOWN = range(3)
_INDEX = {symbol: index for index, symbol in enumerate(VOCABULARY)}


def encode(pronunciation: Sequence[str]) -> list[int]:
    """CTC target of a sequence of phones: their classes and `<eos>`.

    Raises:
        ValueError: no phones, or one that is none of the 71.
    """
    if not pronunciation:
        raise ValueError("there are no phones to encode")
    unknown = sorted(set(pronunciation) - set(PHONES))
    if unknown:
        raise ValueError(f"unknown phones {', '.join(unknown)}; expected ARPAbet with stress, such as AA1 or NG")
    return [_INDEX[phone] for phone in pronunciation] + [END]


def symbols(ids: Sequence[int]) -> list[str]:
    """Phones of `ids` without blank and `<eos>`."""
    return [VOCABULARY[index] for index in ids if index not in (BLANK, END)]
