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
from laser_hf.records import command_line

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


def test_help_imports_only_the_standard_library(installed, tmp_path):
    program = (
        "import sys; before = set(sys.modules)\n"
        "from laser_hf.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('imported', *{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    imported = start(installed, tmp_path, "-c", program).stdout.split("imported ")[1].split()
    assert "laser_hf" in imported
    assert {name for name in imported if name not in sys.stdlib_module_names} == {"laser_hf"}


@pytest.mark.slow
def test_help_of_train_imports_nothing_that_trains(installed, tmp_path):
    """It takes what the import of torch and of the options of transformers takes."""
    program = (
        "import sys\n"
        "from laser_hf.__main__ import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: print('imported', *sys.modules)"
    )
    printed, imported = start(installed, tmp_path, "-c", program).stdout.split("imported ")
    assert printed.startswith("usage: laser-hf train")
    assert "--preset" in printed
    names = imported.split()
    heavy = {"datasets", "pandas", "pyarrow", "scipy", "matplotlib", "numba", "triton", "tensorboard"}
    assert not heavy & set(names)
    assert "transformers.trainer" not in names
    rooms = {".".join(name.split(".")[:2]) for name in names if name.startswith("laser_hf.")}
    assert not rooms & {"laser_hf.encoders", "laser_hf.superb", "laser_hf.publishing", "laser_hf.plots"}
    assert "laser_hf.training.options" in names
    assert "laser_hf.training.trainer" not in names


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


# A plain install lacks what only extras install. One process runs all commands: each would import torch anew.
PLAIN = f"""
import json, sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
missing = {[*command.EXTRAS, "evaluate"]}
PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in missing else find(name, *rest)
)
from laser_hf import cli
from laser_hf.__main__ import main
for argv in json.loads(sys.argv[1]):
    try:
        cli.run(main, argv)
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.mark.slow
def test_demo_train_measure_and_push_from_the_wheel(installed, tmp_path):
    """What a new user does, in an empty folder, with a plain install."""
    few = ["--max_steps", "2", "--eval_on_start", "false", "--max_eval_samples", "4"]
    speech = installed / "laser_hf" / "demo" / "speech"
    with HubServer() as hub:
        commands = [
            ["demo", *few],
            ["train", "--preset", "demo", "--use_cpu", "--output_dir", "mine", *few],
            [
                "superb", "discrimination", "--model", "mine", "--data", str(speech), "--alignments",
                str(speech / "words.tsv"), "--split", "heldout", "--output_dir", "mine/results/words",
            ],
            ["push", "outputs/demo", "--repo_id", "org/demo-laser", "--yes"],
        ]  # fmt: skip
        printed = start(installed, tmp_path, "-c", PLAIN, json.dumps(commands), **hub.environment(tmp_path / "home"))
        files = hub.files("org/demo-laser")
    assert "same / different" in printed.stdout
    assert (tmp_path / "outputs" / "demo" / "plots" / "alignment.png").is_file()
    assert (tmp_path / "mine" / "laser_config.json").is_file()
    assert (tmp_path / "mine" / "results" / "words" / "results.json").is_file()
    assert {"README.md", "model.safetensors", "laser_config.json"} <= set(files)
    assert b"laser-hf demo" in files["laser_config.json"]
