"""What a card says that no record says: about the base model, the method, and published results.

It comes from the classes of objective and perturbations, and from `model_cards/`: base models in `bases.json`, other
texts in `texts.json`.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..data import find_perturbation
from ..errors import LaserError
from ..objectives import find_objective
from ..plugins import Plugin
from ..records import located

_NEEDED = ("base_title", "base_training_data", "licence", "licence_text")
_DEFAULTS = {"base_url": None, "base_authors": None, "base_paper": None, "languages": ["en"], "note": None, "tags": []}


def card_file(name: str) -> str:
    """The text of a file of `model_cards/`: in the installed package, or beside it in a checkout."""
    package = importlib.resources.files("laser_hf")
    found = package / "model_cards" / name
    return (found if found.is_file() else package.parent / "model_cards" / name).read_text(encoding="utf-8")


def find_facts(record: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is known about the base model and the method of a run.

    Args:
        record: `laser_config.json` of the run.
        given: facts from the user, in place of those known.

    Returns:
        The entry of `bases.json`; `title`; `method_title`, `method_paper`, `summary` and `citation` of the objective;
        `changes`, what the two views differ in.

    Raises:
        LaserError: an unknown base model, and therefore no known licence; a class that cannot be imported.
    """
    base = record["base_model"]
    name = located(record["recipe"]["model"]["model_name_or_path"]) if base["local"] else base["name"]
    known = json.loads(card_file("bases.json"))["bases"]
    objective, perturbed = find_objective(record["method"]), record["recipe"]["perturbations"]
    facts = {
        **_DEFAULTS,
        **next((entry for entry in known if matches(name, entry["match"])), {}),
        "method_title": _title(objective),
        "method_paper": objective.paper,
        "summary": objective.summary,
        "citation": objective.bibtex,
        "changes": listed(dict.fromkeys(change for name in perturbed["name"] for change in _changes(name, perturbed))),
        **(given or {}),
    }
    if missing := [key for key in _NEEDED if not facts.get(key)]:
        raise LaserError(
            f"nothing is known about the base model {base['name']!r}, above all its licence. Write a JSON file with "
            f"the keys of an entry of model_cards/bases.json (missing: {', '.join(missing)}) and give it with --facts"
        )
    title = facts["base_title"]
    facts.setdefault("title", f"{title[0].upper()}{title[1:]}, fine-tuned with {facts['method_title']}")
    return facts


def matches(name: str, known: Sequence[str]) -> bool:
    """Whether a Hub id or path ends in, or contains, one of the known ones."""
    return any(f"/{one}/" in f"/{name.strip('/')}/" for one in known)


def _title(plugin: type[Plugin]) -> str:
    return plugin.title or plugin.__name__


def _changes(name: str, values: Mapping[str, Any]) -> Sequence[str]:
    plugin = find_perturbation(name)
    options = {option.dest: values[option.dest] for option in plugin.options if option.dest in values}
    try:
        return plugin(**plugin.checked(options)).changes or [_title(plugin)]
    except (ValueError, OSError, ImportError):  # its noise or its libraries may be elsewhere
        return plugin.changes or [_title(plugin)]


def listed(items: Sequence[Any]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def published_values(base: str, method: str, method_title: str) -> list[dict[str, str]]:
    """What the literature reports for a base model and a method on it: `model`, `measure`, `value`, `source`.

    Args:
        base: title of the base model, as in `bases.json`.
        method: as in the record of a run.
        method_title: what the card calls it.
    """
    known = json.loads((importlib.resources.files("laser_hf") / "superb" / "published.json").read_text())
    measures, rows = json.loads(card_file("texts.json"))["published"], {}
    for entry in known["values"]:
        if entry["base"] != base or entry["method"] not in ("base", method) or entry["column"] not in measures:
            continue
        source = known["sources"][entry["source"]]
        second = "" if entry["evidence"] == "read" else ", quoted second-hand"
        model = base if entry["method"] == "base" else f"{base} with {method_title}"
        row = {
            "model": model,
            "measure": measures[entry["column"]],
            "value": f"{entry['value']} {'%' if entry['unit'] == 'percent' else entry['unit']}",
            "source": f"[{source['title']}]({source['url']}), {entry['place']}{second}",
        }
        # The same value may stand in several tables of a paper.
        rows.setdefault((model, entry["column"]), row)
    return list(rows.values())
