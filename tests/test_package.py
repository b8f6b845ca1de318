"""The wheel is complete, its command works without the checkout, and it asks for no more than it needs."""

from __future__ import annotations

import ast
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from hub_server import HubServer

import laser_hf
from laser_hf import __main__ as command
from laser_hf.errors import LaserError
from laser_hf.records import command_line, read_record

NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "outputs", "runs", "build", "dist", "site", "*.egg-info", "__pycache__", "*.pyc", ".*_cache",
    ".hypothesis", "*.log",
)  # fmt: skip
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
DISTRIBUTIONS = {"yaml": "pyyaml", "parselmouth": "praat-parselmouth"}
"""Imported module -> package that installs it, where the names differ."""
SHOWN = {
    "demo": "--output_dir",
    "train": "--preset",
    "superb": "discrimination",
    "push": "--repo_id",
    "manifest": "--output",
    "convert": "--base",
    "plots": "--utterance",
    "search": "--over",
    "eval-ctc": "--metric",
    "app": "--host",
}
"""What the help of each command must name."""


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an `sdist` or a `wheel` of `source` without the network."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout, for building leaves files behind."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("checkout") / "laser"
    shutil.copytree(REPOSITORY, copy, ignore=NOT_SOURCE)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory) -> Path:
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel, built from the unpacked sdist."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Folder that the wheel is installed into; its dependencies are those of the running Python."""
    target = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, wheel],
        check=True,
    )
    return target


def start(installed: Path, folder: Path, *program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the installed package, in a folder outside the checkout."""
    done = subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_sdist_holds_the_checkout(checkout, sdist):
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in files_below(checkout) if not re.match(r"\.|build/|.*\.egg-info/", name)}
    assert wanted <= found, sorted(wanted - found)


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_cards(checkout, wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    wanted = {f"laser_hf/{name}" for name in files_below(checkout / "laser_hf")}
    wanted |= {f"laser_hf/model_cards/{name}" for name in files_below(checkout / "model_cards")}
    assert found == wanted


def test_one_version(metadata):
    assert metadata["Name"] == "laser-hf"
    assert metadata["Version"] == laser_hf.__version__
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == laser_hf.__version__
    changes = re.findall(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert laser_hf.__version__ in changes


@pytest.mark.slow
def test_the_command_works_outside_the_checkout(installed, tmp_path):
    script = installed / "bin" / "laser-hf"
    printed = start(installed, tmp_path, str(script), "--help").stdout
    for name, (_, text) in command.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", printed, re.MULTILINE)
    assert start(installed, tmp_path, "-m", "laser_hf", "--help").stdout == printed
    assert start(installed, tmp_path, "-m", "laser_hf", "--version").stdout == f"laser-hf {laser_hf.__version__}\n"
    where = start(installed, tmp_path, "-c", "import laser_hf; print(laser_hf.__file__)").stdout
    assert where.strip() == str(installed / "laser_hf" / "__init__.py")


@pytest.mark.parametrize("name", list(command.COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ")
    assert SHOWN[name] in printed


def test_wrong_commands_are_argparse_errors(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["trian"])
    assert ended.value.code == 2
    assert "'train'" in capsys.readouterr().err


def toy(monkeypatch, tmp_path, source: str) -> None:
    """Make `laser-hf toy` the function `main` of a module with this source."""
    (tmp_path / "toy_command.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "toy_command", None)  # at the end, what the test has imported is forgotten
    del sys.modules["toy_command"]
    monkeypatch.setattr(command, "COMMANDS", {"toy": ("toy_command:main", "")})


def test_the_record_names_the_command(monkeypatch, tmp_path):
    toy(monkeypatch, tmp_path, "from laser_hf.records import command_line\nmain = lambda argv: print(command_line())")
    before = sys.argv
    seen = []
    monkeypatch.setattr("builtins.print", seen.append)
    command.main(["toy", "--hub_token", "secret", "a b"])
    assert seen == ["laser-hf toy --hub_token '***' 'a b'"]
    assert sys.argv is before
    assert not command_line().startswith("laser-hf")


@pytest.mark.parametrize("where", ["import optuna\nmain = print", "def main(argv):\n    import optuna.samplers"])
def test_a_missing_extra_is_named(where, monkeypatch, tmp_path):
    toy(monkeypatch, tmp_path, where)
    for name in [name for name in sys.modules if name.partition(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(LaserError, match=r"^laser-hf toy needs optuna: pip install 'laser-hf\[search\]'$"):
        command.main(["toy"])


def test_another_missing_module_is_a_bug(monkeypatch, tmp_path):
    toy(monkeypatch, tmp_path, "import no_such_module_at_all")
    with pytest.raises(ModuleNotFoundError):
        command.main(["toy"])


def imported_by(path: Path) -> set[str]:
    """Top-level modules that a file imports, relative imports left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_import_is_declared(metadata):
    """Every imported package is in a plain install, or in an extra that `EXTRAS` names."""
    declared: dict[str, set[str]] = {}
    for requirement in metadata.get_all("Requires-Dist"):
        name = re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-")
        extra = re.search(r"extra == [\"'](\w+)", requirement)
        declared.setdefault(extra.group(1) if extra else "", set()).add(name)
    assert declared.pop("all") == {"laser-hf"}
    package = Path(laser_hf.__file__).parent
    undeclared, extras = set(), {}
    for path in sorted(package.rglob("*.py")):
        for module in imported_by(path) - set(sys.stdlib_module_names) - {"laser_hf"}:
            name = DISTRIBUTIONS.get(module, module.lower().replace("_", "-"))
            if module == "triton" or name in declared[""]:  # torch brings Triton where there is one
                continue
            extra = next((extra for extra, packages in declared.items() if name in packages), None)
            extras.setdefault(module, extra)
            if extra is None:
                undeclared.add(f"{path.relative_to(package)}: {module}")
    assert not undeclared
    assert extras == command.EXTRAS


def test_every_exported_name_exists():
    for name in laser_hf.__all__:
        assert getattr(laser_hf, name) is not None
    assert set(laser_hf._LAZY) == set(laser_hf.__all__) - {"__version__"}


# A plain install lacks what only extras install. One process does all of it: each would import torch anew.
PLAIN = f"""
import contextlib, io, json, shlex, sys
before = set(sys.modules)
from importlib.machinery import PathFinder
find = PathFinder.find_spec
missing = {[*command.EXTRAS, "evaluate"]}
PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in missing else find(name, *rest)
)
from laser_hf import cli
from laser_hf.__main__ import main
seen = []
def start(*argv):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            cli.run(main, argv)
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        seen.append([said.getvalue(), sorted(set(sys.modules) - before)])
    return said.getvalue()
start("--help")
start("train", "--help")
few = ["--max_steps", "2", "--eval_on_start", "false", "--pairs_per_update", "4", "--dataloader_num_workers", "0"]
said = start("demo", *few, "--max_eval_samples", "4")
words = shlex.split(cli.program())
named = [shlex.split(line)[len(words):] for line in said.splitlines() if line.startswith("  " + cli.program())]
seen.append(named)
start(*named[0])
start(*named[1], "--yes")
start("train", "--preset", "demo", "--use_cpu", "--output_dir", "mine", *few, "--eval_data", "", "--plots", "false")
json.dump(seen, open("seen.json", "w"))
"""


@pytest.fixture(scope="module")
def new_user(installed, tmp_path_factory):
    """What a new user does, in an empty folder, with a plain install: the folder, what was seen, files on the Hub."""
    folder = tmp_path_factory.mktemp("new")
    share_compiled(installed)
    with HubServer() as hub:
        start(installed, folder, "-c", PLAIN, **hub.environment(folder / "home"))
        (repository,) = hub.repositories
        files = hub.files(repository)
    return folder, json.loads((folder / "seen.json").read_text()), files


def share_compiled(installed: Path) -> None:
    """Give the installed copy what numba has compiled from the same sources; compiling it again takes ten seconds."""
    for path in (REPOSITORY / "laser_hf").rglob("*"):
        copy = installed / path.relative_to(REPOSITORY)
        if path.suffix in (".nbi", ".nbc"):
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
        elif path.suffix == ".py":
            os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))  # by which numba knows the source


@pytest.mark.slow
def test_help_imports_only_the_standard_library(new_user):
    _, imported = new_user[1][0]
    assert "laser_hf" in imported
    packages = {name.partition(".")[0] for name in imported}
    assert {name for name in packages if name not in sys.stdlib_module_names} == {"laser_hf"}


@pytest.mark.slow
def test_help_of_train_imports_nothing_that_trains(new_user):
    """It takes what the import of torch and of the options of transformers takes."""
    printed, names = new_user[1][1]
    assert printed.startswith("usage: laser-hf train")
    assert "--preset" in printed
    heavy = {"datasets", "pandas", "pyarrow", "scipy", "matplotlib", "numba", "triton", "tensorboard"}
    assert not heavy & set(names)
    assert "transformers.trainer" not in names
    rooms = {".".join(name.split(".")[:2]) for name in names if name.startswith("laser_hf.")}
    assert not rooms & {"laser_hf.encoders", "laser_hf.superb", "laser_hf.publishing", "laser_hf.plots"}
    assert "laser_hf.training.options" in names
    assert "laser_hf.training.trainer" not in names


@pytest.mark.slow
def test_the_demo_ends_with_its_table(new_user):
    """`make demo`, shortened."""
    folder, seen, _ = new_user
    output, (printed, _) = folder / "outputs" / "demo", seen[2]
    assert "same / different" in printed
    assert "Encoder outputs/demo (AutoModel.from_pretrained loads it)" in printed
    assert "Held-out speech was not measured twice" in printed
    record = read_record(output / "results" / "words.json")
    assert (record["task"], record["protocol"], record["metric"]) == ("discrimination", "quick", "word_ap_across")
    (before,), (after,) = record["base"]["metrics"], record["metrics"]
    assert before["same_pairs"] == after["same_pairs"] > 100
    assert before["value"] == pytest.approx(0.896, abs=5e-4)
    assert before["ratio"] == pytest.approx(0.373, abs=5e-4)
    assert before["same_distance"] != after["same_distance"]
    assert record["value"] == after["value"]
    assert record["weights_sha256"] != record["base"]["weights_sha256"]
    assert record["base"]["model"] == "{laser_hf}/demo/encoder"
    assert (output / "plots" / "alignment.png").is_file()


@pytest.mark.slow
def test_the_commands_that_the_demo_names_measure_and_publish(new_user):
    """The encoder is measured on the whole shipped held-out speech, and a fresh process reloads it."""
    folder, seen, files = new_user
    measure, publish = seen[3]
    assert (measure[:2], publish[0]) == (["superb", "discrimination"], "push")
    found = read_record(folder / "outputs" / "demo" / "results" / "discrimination" / "results.json")
    assert found["metric"] == "word_ap_across"
    assert {"README.md", "model.safetensors", "laser_config.json", "results/discrimination.json"} <= set(files)
    assert b"laser-hf demo" in files["laser_config.json"]


@pytest.mark.slow
def test_train_from_the_wheel(new_user):
    folder, _, _ = new_user
    assert (folder / "mine" / "laser_config.json").is_file()
