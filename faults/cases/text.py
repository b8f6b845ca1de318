"""Kind 6: transcripts and tables as other systems leave them."""

from __future__ import annotations

from collections.abc import Callable

from ..lab import Fault, Lab, Outcome


def _transcript(encoding: str, line_end: str = "\n") -> Callable[[Lab], Outcome]:
    """Train on a tree with one transcript in another encoding."""

    def provoke(lab: Lab) -> Outcome:
        path = lab.speech / "1" / "10" / "1-10.trans.txt"
        text = path.read_text().replace("THREE", "TR\u00c8S")
        path.write_bytes(text.replace("\n", line_end).encode(encoding))
        return lab.train()

    return provoke


FAULTS = [
    *(
        Fault(6, f"a transcript in {encoding}", _transcript(encoding), says=("1-10.trans.txt, line", "not UTF-8"))
        for encoding in ("latin-1", "utf-16", "utf-16-le")
    ),
    Fault(6, "a transcript with byte-order mark and CRLF", _transcript("utf-8-sig", "\r\n"), status=0),
    Fault(6, "a transcript with old Macintosh line ends", _transcript("utf-8", "\r"), status=0),
]
