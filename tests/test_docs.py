"""The pages of the documentation are all there, link to each other, and name commands and options that exist."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from laser_hf import __main__ as command
from laser_hf.records import read_json

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("README.md", "docs/*.md", "examples/*.md", "experiments/README.md", "benchmarks/README.md")
    for path in REPOSITORY.glob(pattern)
)
# How the pages start a command of `laser-hf`.
PROGRAMS = {
    "train.py": "train",
    "push_to_hub.py": "push",
    "eval_ctc.py": "eval-ctc",
    "laser_hf.demo": "demo",
    "laser_hf.superb": "superb",
    "laser_hf.search": "search",
    "laser_hf.plots": "plots",
}


@pytest.fixture(scope="module")
def docs_pages():
    spec = importlib.util.spec_from_file_location("docs_pages", REPOSITORY / "scripts" / "docs_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named_pages(entry) -> list[str]:
    """Pages below an entry of `nav` in `mkdocs.yml`."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in named_pages(value)]


def test_every_page_is_in_the_navigation(docs_pages, tmp_path):
    pages = docs_pages.collect(tmp_path)
    nav = named_pages(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(page for page in pages.values() if page.endswith(".md"))


def test_links_of_the_site_lead_somewhere(docs_pages, tmp_path):
    docs_pages.collect(tmp_path)
    links = 0
    for page in tmp_path.rglob("*.md"):
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)\s]+)\)", page.read_text()):
            links += 1
            assert (page.parent / link.split("#")[0]).resolve().is_file(), f"{page}: {link}"
    assert links > 20
    assert "make demo" in (tmp_path / "index.md").read_text()


def test_pictures_of_the_site_are_there(docs_pages, tmp_path):
    """Also those in HTML, which `mkdocs build --strict` does not check."""
    docs_pages.collect(tmp_path / "docs")
    found = 0
    for page in (tmp_path / "docs").rglob("*.md"):
        for place in re.findall(r"""(?:!\[[^\]]*\]\(|<img[^>]*src=["'])([^)"'\s]+)""", page.read_text()):
            if not place.startswith("http"):
                assert (page.parent / place).is_file(), f"{page.name}: {place}"
                found += 1
    assert found > 15


def test_links_between_files_become_links_between_pages(docs_pages):
    pages = {"docs/a.md": "a.md", "docs/index.md": "index.md", "examples/b.md": "examples/b.md"}
    text = "[b](../examples/b.md#x) [readme](../README.md) [code](../laser_hf/cli.py) [web](https://a.org) [here](#y)"
    text += "\n```sh\n[b](../examples/b.md)\n```\n[lost](nowhere.md)"
    assert docs_pages.relinked(text, "docs/a.md", "a.md", pages) == (
        "[b](examples/b.md#x) [readme](index.md) code [web](https://a.org) [here](#y)"
        "\n```sh\n[b](../examples/b.md)\n```\n[lost](nowhere.md)"
    )
    assert docs_pages.relinked("[a](../docs/a.md)", "examples/b.md", "examples/b.md", pages) == "[a](../a.md)"


def commands_of(page: str) -> list[list[str]]:
    """Commands of `laser-hf` in the shell blocks of a page: sub-command, then its words."""
    found = []
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```", (REPOSITORY / page).read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"['\"]", "", line), comments=True)
            for index, word in enumerate(words):
                if word in ("laser-hf", "laser_hf"):
                    found.append(words[index + 1 :])
                elif word in PROGRAMS:
                    found.append([PROGRAMS[word], *words[index + 1 :]])
    return [one for one in found if (one and one[0].strip("-").isidentifier()) or one[0] == "eval-ctc"]


@cache
def options_of(*words: str) -> set[str]:
    """Options that the help of a command names."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        command.main(list(words))
    assert ended.value.code == 0
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z]\w*", printed.getvalue()))


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page):
    known = set(command.COMMANDS)
    for name, *words in commands_of(page):
        if name.startswith("-") or name == "COMMAND":
            continue
        assert name in known, f"{page}: laser-hf {name}"
        if name == "superb":
            if words[0].isupper() or ":" in words[0]:  # TASK, or one's own
                continue
            allowed = options_of(name, words[0], "--help")
        elif name == "train":
            allowed = options_of(name, "--help_all")
        else:
            allowed = options_of(name, "--help")
        if name in ("search", "demo"):
            allowed = allowed | options_of("train", "--help_all")
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        assert used <= allowed | {"--help", "--help_all"}, f"{page}: {name} {used - allowed}"


# What a command on a page needs that a test has not, by what is in the command; and the word by which its page says so.
NEEDS = {
    "Hub": r"facebook/|your-name/|openslr/|--preset (hubert|wavlm)-base",
    "LibriSpeech": r"LibriSpeech",
    "QUESST": r"quesst14Database",
    "DEMAND": r"DEMAND",
    "released": r"states-3600\.ckpt",
    "S3PRL": r"s3prl",
    "pip install": r"pip (install|download)|--target site|site make",
    "network": r"curl ",
    "experiments": r"experiments\.(run|collect|second)",
}
# Where a command that needs nothing is executed, as it is or with fewer updates, other speech or another folder.
EXECUTED = {
    r"make demo": "tests/test_package.py::test_the_demo_ends_with_its_table",
    r"make test": "tests/test_docs.py::test_commands_are_executed_or_need_something_that_the_page_names",
    r"(train\.py|laser-hf train) --preset demo --train_data my_speech": "tests/test_docs.py::test_your_own_speech",
    r"superb table": "tests/superb/test_table.py::test_golden_text",
    r"laser-hf app *(#|$)": "tests/app/test_browser.py::test_words_are_found",
    r"--num_processes 2 .*--preset demo --use_cpu": "tests/training/test_family.py::test_two_processes_equal_one",
    r"my_losses:|my_views:": "tests/test_docs.py::test_an_own_objective_and_view_train",
    r"my_tasks:": "tests/test_docs.py::test_an_own_task_measures",
    r"laser-hf train --help": "tests/test_package.py::test_every_command_has_help",
    r"laser-hf --help": "tests/test_package.py::test_the_command_works_outside_the_checkout",
    r"laser-hf search --preset demo --over": "tests/search/test_command.py::test_a_search_trains_scores_and_records",
    r"laser-hf search \.\.\.": "tests/search/test_study.py::test_two_processes_share_the_points",
    r"qbe --model ID_OR_FOLDER": "tests/superb/qbe/test_task.py::test_tables_give_a_quick_record",
    r"laser-hf plots": "tests/plots/test_command.py::test_the_command_draws_a_run",
    r"render_tables\.py": "tests/test_readme.py::",
}
_PROGRAM = re.compile(
    r"laser[-_]hf |train\.py|push_to_hub|eval_ctc|run_speech|pip |make |accelerate |experiments\.|s3prl|curl "
)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_executed_or_need_something_that_the_page_names(page):
    text = (REPOSITORY / page).read_text()
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for block in (code for kind, code in fences if kind in ("", "sh")):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+", " ", line).strip()
            if not _PROGRAM.search(line) or line.startswith(("#", "[")):
                continue
            needs = [name for name, pattern in NEEDS.items() if re.search(pattern, line)]
            tests = [test for pattern, test in EXECUTED.items() if re.search(pattern, line)]
            assert needs or tests, f"{page}: no test executes {line!r}, and it needs nothing that tests lack"
            for name in needs:
                assert name in text, f"{page} does not say that {line!r} needs {name}"


@pytest.mark.parametrize("test", sorted(set(EXECUTED.values())))
def test_the_tests_that_execute_commands_exist(test):
    path, _, name = test.partition("::")
    assert f"def {name}(" in (REPOSITORY / path).read_text() if name else (REPOSITORY / path).is_file()


def block_after(page: str, before: str, language: str) -> str:
    """The first code block of `language` behind the text `before` of a page."""
    text = (REPOSITORY / page).read_text().split(before, 1)[1]
    return re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL).group(1)


def words_of(shell: str) -> list[str]:
    """Words of the first command of a shell block, from the name of the sub-command on."""
    words = shlex.split(shell.replace("\\\n", " ").splitlines()[0], comments=True)
    return words[words.index("laser-hf") + 1 :]


def write_module(name: str, folder: Path, monkeypatch) -> None:
    """Write the page's module of that name to `folder` and make it importable for one test."""
    (folder / f"{name}.py").write_text(block_after("docs/extending.md", f"`{name}.py`:", "python"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, name, None)  # at the end, what the test has imported is forgotten
    del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["my_losses", "my_views"])
def test_an_own_objective_and_view_train(module, tmp_path, monkeypatch):
    write_module(module, tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    words = words_of(
        block_after("docs/extending.md", f"class {'CosineLoss' if module == 'my_losses' else 'Gain'}", "sh")
    )
    few = "--max_steps 1 --eval_on_start false --max_eval_samples 4 --plots false --report_to none --use_cpu"
    command.main([*words, *few.split()])
    record = read_json(Path(words[words.index("--output_dir") + 1]) / "laser_config.json")
    assert record["updates"] == 1
    assert module in str(record["recipe"])


def test_an_own_task_measures(tmp_path, monkeypatch):
    from laser_hf.demo import ENCODER_DIR, SPEECH_DIR

    write_module("my_tasks", tmp_path, monkeypatch)
    words = words_of(block_after("docs/extending.md", "class Slowness", "sh"))[:2]
    data = SPEECH_DIR / "heldout" / "v17"
    command.main([*words, "--model", str(ENCODER_DIR), "--data", str(data), "--output_dir", str(tmp_path / "out")])
    record = read_json(tmp_path / "out" / "results.json")
    assert record["task"] == "slowness"
    assert 0 < record["value"] < 1
    assert record["data"]["utterances"] == len(list(data.rglob("*.opus")))


@pytest.mark.slow
def test_your_own_speech(tmp_path, monkeypatch):
    """The commands of the page, on a copy of the shipped speech."""
    from laser_hf.demo import SPEECH_DIR

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_speech").symlink_to(SPEECH_DIR)
    words = words_of(block_after("docs/own_speech.md", "## Train", "sh"))
    few = "--max_steps 1 --eval_on_start false --max_eval_samples 4 --plots false --report_to none --use_cpu"
    command.main([*words, *few.split()])
    code = block_after("docs/own_speech.md", "## Use", "python")
    names: dict[str, object] = {}
    exec(code, names)
    assert names["model"].config.model_type == "hubert"
    assert names["extractor"].sampling_rate == 16_000
