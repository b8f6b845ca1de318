"""The README shows what the records say and what the command line knows."""

from __future__ import annotations

import importlib.util
import re
from xml.etree import ElementTree

import pytest
from conftest import REPOSITORY

from laser_hf.training.options import build_parser

README = (REPOSITORY / "README.md").read_text()


def test_tables_come_from_records():
    spec = importlib.util.spec_from_file_location("render_tables", REPOSITORY / "scripts" / "render_tables.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shown = set()
    for page in script.PAGES:
        text = (REPOSITORY / page).read_text()
        shown |= set(re.findall(r"<!-- record: ([\w-]+) -->", text))
        assert script.render(text) == text, page
    assert shown == set(script.TABLES)


@pytest.mark.parametrize(
    "page",
    [
        "README.md", "docs/superb.md", "docs/presets.md", "docs/search.md", "benchmarks/README.md",
        "experiments/README.md", "examples/ctc_finetuning.md", "examples/s3prl.md",
    ],
)  # fmt: skip
def test_pictures_and_links_exist(page):
    path = REPOSITORY / page
    for link in re.findall(r"\]\((?!https?://|#)([^)]+)\)", path.read_text()):
        assert (path.parent / link.split("#")[0]).exists(), link


def test_options_in_commands_exist():
    known = {flag for action in build_parser(show_all=True)._actions for flag in action.option_strings}
    commands = re.findall(r"(?:laser-hf|laser_hf) train((?:[^\n`]|\\\n)*)", README)
    used = {flag for command in commands for flag in re.findall(r"(?<!\S)--\w+", command)}
    assert used
    assert used <= known, used - known


def test_the_picture_of_the_demo_is_what_it_printed():
    """The picture is drawn from the committed output of a run; the page on training quotes lines of it."""
    spec = importlib.util.spec_from_file_location("console_picture", REPOSITORY / "scripts" / "console_picture.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    printed = script.PRINTED.read_text()
    drawn = script.PICTURE.read_text()
    assert script.picture(printed) == drawn
    rows = [row.text for row in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert "".join("".join(rows).split()) == "".join(printed.split())
    assert max(map(len, rows)) <= script.COLUMNS
    page = (REPOSITORY / "docs" / "training.md").read_text()
    quoted = re.search(r"```text\n(.*?)```", page, re.DOTALL)[1].splitlines()
    assert len(quoted) >= 3
    assert set(quoted) <= set(printed.splitlines())
    assert "docs/figures/demo.svg" in README
