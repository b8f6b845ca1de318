"""The README shows what the records say and what the command line knows."""

from __future__ import annotations

import importlib.util
import re

import pytest
from conftest import REPOSITORY

from laser_hf.training.options import build_parser

README = (REPOSITORY / "README.md").read_text()


def test_tables_come_from_records():
    spec = importlib.util.spec_from_file_location("render_readme", REPOSITORY / "scripts" / "render_readme.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert README.count("<!-- record: ") == len(script.TABLES)
    assert script.render(README) == README


@pytest.mark.parametrize(
    "page", ["README.md", "docs/superb.md", "benchmarks/README.md", "examples/ctc_finetuning.md", "examples/s3prl.md"]
)
def test_pictures_and_links_exist(page):
    path = REPOSITORY / page
    for link in re.findall(r"\]\((?!https?://|#)([^)]+)\)", path.read_text()):
        assert (path.parent / link.split("#")[0]).exists(), link


def test_options_in_commands_exist():
    known = {flag for action in build_parser(show_all=True)._actions for flag in action.option_strings}
    commands = re.findall(r"train\.py((?:[^\n`]|\\\n)*)", README)
    used = {flag for command in commands for flag in re.findall(r"(?<!\S)--\w+", command)}
    assert used
    assert used <= known, used - known
