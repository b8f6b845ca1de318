"""`python -m faults`: run all faults and kills, write `faults/record.json` and render `docs/reliability.md`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from laser_hf import cli
from laser_hf.errors import LaserError
from laser_hf.records import provenance, read_json, write_json

from . import cases
from .kills import Kill, KillPlan, run_kills
from .lab import KINDS, Fault, Verdict, fresh_lab, judge, make_template, warm_up

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE = Path(__file__).with_name("record.json"), ROOT / "docs" / "reliability.md"


def all_cases() -> tuple[list[Fault], list[KillPlan]]:
    """`FAULTS` and `KILLS` of every module in `faults/cases`."""
    faults: list[Fault] = []
    kills: list[KillPlan] = []
    for module in sorted(one.name for one in pkgutil.iter_modules(cases.__path__)):
        loaded = importlib.import_module(f"{cases.__name__}.{module}")
        faults += getattr(loaded, "FAULTS", [])
        kills += getattr(loaded, "KILLS", [])
    names = [fault.name for fault in faults]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RuntimeError(f"faults of the same name: {', '.join(twice)}")
    return sorted(faults, key=lambda fault: fault.kind), kills


def run_all(faults: Sequence[Fault], plans: Sequence[KillPlan]) -> tuple[list[Verdict], list[Kill]]:
    """Run faults, then kills, with a line on stderr for each."""
    verdicts, kills = [], []
    with tempfile.TemporaryDirectory(prefix="laser_hf-faults-") as folder:
        template = Path(folder) / "template"
        make_template(template)
        for number, fault in enumerate(faults):
            with fresh_lab(template, Path(folder) / "lab") as lab:
                verdict = judge(fault, lab)
            verdicts.append(verdict)
            what = "fine" if verdict.fine else "; ".join(verdict.wrong)
            print(f"{number + 1}/{len(faults)} [{fault.kind}] {fault.name}: {what}", file=sys.stderr)
            if not verdict.fine and verdict.outcome is not None:
                print(verdict.outcome.output[-1500:], file=sys.stderr)
        for plan in plans:
            done = run_kills(plan, template, Path(folder))
            wrong = [kill for kill in done if kill.failed or kill.differs]
            print(f"{plan.name}: {len(done)} kills, {len(wrong)} wrong", file=sys.stderr)
            for kill in wrong:
                print(f"  {kill.number} after {kill.after}: {kill.differs} {kill.failed}", file=sys.stderr)
            kills += done
    return verdicts, kills


def make_record(verdicts: Sequence[Verdict], kills: Sequence[Kill]) -> dict[str, Any]:
    """What `docs/reliability.md` is rendered from."""
    return {
        "faults": [
            {
                "kind": verdict.fault.kind,
                "name": verdict.fault.name,
                "status": verdict.outcome.status if verdict.outcome else None,
                "said": _last_line(verdict.outcome.output) if verdict.outcome else "",
                "wrong": verdict.wrong,
            }
            for verdict in verdicts
        ],
        "kills": [asdict(kill) for kill in kills],
        **provenance(),
    }


def _last_line(output: str) -> str:
    """The line that tells a user what happened."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("error:", "interrupted")) or " error: " in line]
    line = re.sub(r"/[^\s'\"`]*laser_hf-faults-[^/]+/lab/?", "", (told or lines or [""])[-1])
    return re.sub(r"/[^\s'\"`]+/laser-hf ", "laser-hf ", line)[:300]


def render(record: dict[str, Any]) -> str:
    """The page."""
    faults, kills, again = record["faults"], record["kills"], record.get("run_again")
    wrong = [fault for fault in faults if fault["wrong"]]
    bad_kills = [kill for kill in kills if kill["failed"] or kill["differs"]]
    lines = [
        "# Reliability",
        "",
        f"`make faults` provokes {len(faults)} faults, kills {len(kills)} runs of real commands and writes this page.",
        "A fault is fine if the command ends as it should: with one line that says what is wrong, or with the right",
        "result. A kill is fine if the restarted command ends with the weights and the record of an undisturbed run.",
        "",
        f"**Faults: {len(faults) - len(wrong)} of {len(faults)} fine. "
        f"Kills: {len(kills) - len(bad_kills)} of {len(kills)} fine.** Commit `{record['commit']}`"
        + (f"; {len(again['faults'])} faults at `{again['commit']}`." if again else "."),
        "",
        "## Kills",
        "",
        "| command | runs killed | kills in all | ended differently |",
        "|---|---|---|---|",
    ]
    for plan in dict.fromkeys(kill["plan"] for kill in kills):
        of_plan = [kill for kill in kills if kill["plan"] == plan]
        bad = sum(bool(kill["failed"] or kill["differs"]) for kill in of_plan)
        lines.append(f"| {plan} | {len(of_plan)} | {sum(len(kill['after']) for kill in of_plan)} | {bad} |")
    for kind, title in KINDS.items():
        of_kind = [fault for fault in faults if fault["kind"] == kind]
        if of_kind:
            lines += ["", f"## {kind}. {title}", "", "| fault | exit status | what the command said | verdict |"]
            lines += ["|---|---|---|---|"]
        for fault in of_kind:
            verdict = "; ".join(fault["wrong"]) or "fine"
            lines.append(f"| {_cell(fault['name'])} | {fault['status']} | {_cell(fault['said'])} | {_cell(verdict)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--only", default="", help="faults and kill plans whose name contains this; writes nothing")
    parser.add_argument("--kind", type=int, choices=KINDS, help="faults of this kind only; writes nothing")
    parser.add_argument("--kills", type=int, help="at most so many kills a plan; writes nothing")
    parser.add_argument("--quick", action="store_true", help="quick faults, one kill of each quick plan")
    parser.add_argument("--render", action="store_true", help="only render the page from the record")
    arguments = parser.parse_args(argv)
    if not arguments.render:
        warm_up()
        faults, plans = all_cases()
        chosen = [f for f in faults if arguments.only in f.name and arguments.kind in (None, f.kind)]
        plans = [plan for plan in plans if arguments.only in plan.name and arguments.kind is None]
        if arguments.quick:
            chosen, plans = [fault for fault in chosen if fault.quick], [plan for plan in plans if plan.quick]
            arguments.kills = 1
        if arguments.kills is not None:
            plans = [replace(plan, kills=min(plan.kills, arguments.kills)) for plan in plans if arguments.kills]
        verdicts, kills = run_all(chosen, plans)
        wrong = sum(not verdict.fine for verdict in verdicts) + sum(bool(k.failed or k.differs) for k in kills)
        if wrong:
            print(f"{wrong} of {len(verdicts) + len(kills)} are wrong", file=sys.stderr)
        if arguments.only or arguments.kind or arguments.kills is not None or arguments.quick:
            if wrong:
                raise LaserError(f"{wrong} faults or kills are wrong")
            return
        record = make_record(verdicts, kills)
        write_json(RECORD, record)
    PAGE.write_text(render(read_json(RECORD)))


if __name__ == "__main__":
    cli.run(main)
