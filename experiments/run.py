"""Run the experiments, several side by side; stages that have finished are skipped.

python -m experiments.run --speech LibriSpeech --qbe qbe
python -m experiments.run --round 2 --plain outputs/plain_encoder/encoder --speech LibriSpeech --qbe qbe
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from laser_hf.data import audio_seconds

from .plan import (
    COMMON,
    DEV_SPLIT,
    ENCODER,
    MAX_SECONDS,
    POINTS,
    SECOND,
    SEEDS,
    TEST_SPLIT,
    TRAIN_SPLIT,
    Point,
    point,
)

ROOT = Path(__file__).resolve().parent.parent
SHORT = "short"
DONE = {
    "train": "encoder/laser_config.json",
    "qbe": "qbe/results.json",
    "words": "words/results.json",
    "sid": "sid/results.json",
    "pr": "pr/results.json",
    "asr": "asr/results.json",
    "layers": "layers/results.json",
}


def seeds_of(one: Point, stage: str, seeds: list[int]) -> list[int]:
    """Those of `seeds` that a stage runs with; one where nothing is random, or where the plan has one."""
    seeds = [seed for seed in seeds if seed in one.seeds]
    if one in SECOND and stage in ("pr", "asr", "layers"):
        return [seed for seed in seeds if seed == SEEDS[0]]
    if stage in ("qbe", "words") and not one.trained:
        return [seed for seed in seeds if seed == one.seeds[0]]
    return seeds


def folder(output_dir: Path, one: Point, seed: int) -> Path:
    """The folder of a point and a seed."""
    return output_dir / one.name / f"seed-{seed}"


def link_short(speech: Path, where: Path) -> None:
    """Link the training utterances of at most `MAX_SECONDS` below `where`, so that held-out ones may be longer."""
    for path in sorted((speech / TRAIN_SPLIT).rglob("*")):
        seconds = audio_seconds(path) if path.is_file() else None
        if seconds is not None and seconds <= MAX_SECONDS:
            link = where / path.relative_to(speech)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(path.resolve())


def start_of(one: Point, arguments: argparse.Namespace) -> str:
    """The encoder that a point starts from."""
    return ENCODER if one.encoder == "shipped" else str(arguments.plain)


def command(stage: str, one: Point, seed: int, arguments: argparse.Namespace) -> list[str]:
    """Arguments of Python for a stage, run from the root of the repository."""
    where = folder(arguments.output_dir, one, seed)
    speech = str(arguments.speech)
    if stage == "train":
        options = {
            "train_split": TRAIN_SPLIT,
            "eval_data": speech,
            "eval_split": DEV_SPLIT,
            **(
                {"train_data": str(arguments.output_dir / SHORT), "model_name_or_path": start_of(one, arguments)}
                if one in SECOND
                else {"train_data": speech, "max_seconds": MAX_SECONDS}
            ),
            **COMMON,
            **(one.options or {}),
            "seed": seed,
            "use_cpu": arguments.use_cpu,
            "dataloader_num_workers": 0,
            "cache_decoded": str(arguments.output_dir / "decoded"),
            "plots": False,
            "report_to": "none",
            "disable_tqdm": True,
            "output_dir": str(where / "encoder"),
        }
        words = []
        for name, value in options.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return ["train.py", "--preset", one.preset, *words]
    model = str(where / "encoder") if one.trained else start_of(one, arguments)
    device = ["--device", "cpu"] if arguments.use_cpu else []
    if one.whitened:
        short = arguments.output_dir / SHORT / TRAIN_SPLIT
        plain = command(stage, replace(one, whitened=False), seed, arguments)
        return ["-m", "experiments.whitened", plain[2], "--speech", str(short), *plain[3:]]
    if stage in ("qbe", "layers"):
        more = ["--layer", "all", "--perturbed"] if stage == "layers" else []
        return ["-m", "laser_hf.superb", "qbe", "--model", model, "--data", str(arguments.qbe), *more, *device,
                "--output_dir", str(where / stage)]  # fmt: skip
    if stage == "words":
        return ["-m", "laser_hf.superb", "discrimination", "--model", model, "--data", speech, *device,
                "--alignments", str(arguments.speech.parent / "alignments.tsv"), "--split", TEST_SPLIT,
                "--output_dir", str(where / stage)]  # fmt: skip
    if stage == "sid":
        return ["-m", "laser_hf.superb", "sid", "--model", model, "--data", speech, "--split", TRAIN_SPLIT, *device,
                "--seed", str(seed), "--output_dir", str(where / stage)]  # fmt: skip
    return ["-m", "laser_hf.superb", stage, "--protocol", "quick", "--model", model, "--data", speech,
            "--train_split", TRAIN_SPLIT, "--dev_split", DEV_SPLIT, "--test_split", TEST_SPLIT, "--seed", str(seed),
            "--disable_tqdm", "--output_dir", str(where / stage), *device]  # fmt: skip


def run_chain(one: Point, seed: int, stages: list[str], arguments: argparse.Namespace, bar: tqdm) -> str | None:
    """Run the stages of a point and a seed one after the other; return the stage that failed, if any."""
    where = folder(arguments.output_dir, one, seed)
    for stage in stages:
        if not (where / DONE[stage]).exists():
            where.mkdir(parents=True, exist_ok=True)
            # Several processes with one thread each are faster than one with several threads.
            env = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
            with (where / f"{stage}.log").open("a") as log:
                status = subprocess.run(
                    [sys.executable, *command(stage, one, seed, arguments)],
                    cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT,
                ).returncode  # fmt: skip
            if status:
                bar.write(f"failed: {stage} of {one.name}, seed {seed}; see {where / (stage + '.log')}")
                return f"{one.name}/seed-{seed}/{stage}"
        bar.update()
    return None


def main(argv: list[str] | None = None) -> None:
    """Run the stages that have not finished, points in the order of the plan."""
    parser = argparse.ArgumentParser(prog="python -m experiments.run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--speech", type=Path, required=True, help=f"LibriSpeech tree with {TRAIN_SPLIT}, {DEV_SPLIT} and {TEST_SPLIT}"
    )
    parser.add_argument("--qbe", type=Path, required=True, help="folder with queries, documents and targets (.tsv)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/experiments"), help="default: %(default)s")
    parser.add_argument("--round", type=int, choices=(1, 2), default=1, help="which plan (default: %(default)s)")
    parser.add_argument("--plain", type=Path, help="encoder pre-trained without perturbation, for round 2")
    parser.add_argument("--points", nargs="+", metavar="NAME", help="only these (default: all of the plan)")
    parser.add_argument("--stages", nargs="+", choices=list(DONE), default=list(DONE), help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="side by side")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (default: %(default)s)")
    parser.add_argument("--use_cpu", action="store_true", help="leave a GPU alone")
    arguments = parser.parse_args(argv)
    try:
        every = SECOND if arguments.round == 2 else POINTS
        points = [point(name) for name in arguments.points] if arguments.points else list(every)
    except ValueError as error:
        parser.error(str(error))
    for path in (arguments.speech / TRAIN_SPLIT, arguments.qbe / "queries.tsv"):
        if not (ROOT / path).exists():
            parser.error(f"there is no {path}")
    if any(one.encoder == "plain" for one in points) and not arguments.plain:
        parser.error(
            "round 2 needs --plain ENCODER; scripts/pretrain_demo_encoder.py makes it, see experiments/PLAN.md"
        )
    if any(one in SECOND for one in points):
        link_short(ROOT / arguments.speech, ROOT / arguments.output_dir / SHORT)

    chains = []
    for one in points:
        for seed in arguments.seeds:
            stages = [
                stage
                for stage in one.stages
                if stage in arguments.stages and seed in seeds_of(one, stage, arguments.seeds)
            ]
            if stages:
                chains.append((one, seed, stages))
    with (
        tqdm(total=sum(len(stages) for *_, stages in chains), unit="stage") as bar,
        ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        failed = [name for name in pool.map(lambda chain: run_chain(*chain, arguments, bar), chains) if name]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}. The same command runs what is missing.")


if __name__ == "__main__":
    main()
