"""What is known about base models, methods, speech and published results: looked up in files, never from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records import located, read_json

_NOT_KINDS = ("bases.json", "speech.json")
# How the second version of an utterance differs from the first; stands for {perturbed} in the facts files.
_PERTURBED = {
    "speed_pitch": "in another speed and pitch",
    "noise": "with noise added",
    "voice": "in a changed voice",
    "equalizer": "with other strengths of low and high tones",
}
_NO_FACTS = {
    "base_url": None,
    "base_authors": None,
    "base_paper": None,
    "languages": ["en"],
    "note": None,
}
PUBLISHED = Path(__file__).resolve().parents[1] / "superb" / "published.json"
"""Results in the literature: a file of the package, so that cards and reports quote them alike."""
_METHODS = {"laser": "LASER", "soft_dtw": "soft-DTW alone", "score": "SCORE", "spin": "Spin"}
_COLUMNS = {
    "wer": "SUPERB speech recognition, word error rate",
    "per": "SUPERB phoneme recognition, phone error rate",
    "mtwv": "query by example, maximum term-weighted value",
    "wer_gain": "SUPERB speech recognition, word error rate, relative gain over the base model",
    "per_gain": "SUPERB phoneme recognition, phone error rate, relative gain over the base model",
    "mtwv_gain": "query by example, maximum term-weighted value, relative gain over the base model",
    "time": "fine-tuning on one GPU",
}


class CardError(ValueError):
    """Records or facts that make no honest card."""


def find_facts(
    record: Mapping[str, Any], cards_dir: str | Path, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What is known about the base model and the method of a run.

    `bases.json` holds the base models, every other file one kind of published model: a method on some of them.

    Args:
        record: `laser_config.json` of the run.
        cards_dir: folder of the facts files (`model_cards/`).
        given: facts that the user gives, of either kind; they go before those of the folder.

    Returns:
        The facts of the kind, of its base model (as `base_*`, `licence`, `licence_text`, `languages`) and `title`.
        `{perturbed}` in their `summary` and `recipe` has become what the run did to the second version.

    Raises:
        CardError: an unknown base model, and therefore no known licence, or an unknown method.
    """
    given = dict(given or {})
    cards_dir = Path(cards_dir)
    name, method = _base_path(record), record["method"]
    bases = read_json(cards_dir / "bases.json")["bases"]
    base = next((entry for entry in bases if any(_is_source(name, known) for known in entry["match"])), {})
    needed = ("base_title", "base_training_data", "licence", "licence_text")
    missing = [key for key in needed if not {**base, **given}.get(key)]
    if missing:
        raise CardError(
            f"nothing is known here about the base model {record['base_model']['name']!r}, above all its licence. "
            f"Write a JSON file with the keys of an entry of {cards_dir.name}/bases.json (missing: "
            f"{', '.join(missing)}) and give it with --facts"
        )
    kinds = [read_json(path) for path in sorted(cards_dir.glob("*.json")) if path.name not in _NOT_KINDS]
    kinds = [kind for kind in kinds if kind["method"] == method]
    if not kinds and "method_title" not in given:
        raise CardError(
            f"nothing is known here about the method {method!r}; write a JSON file like {cards_dir.name}/"
            "hubert-laser.json and give it with --facts"
        )
    # A kind made for this base model before one made for others: the method is the same, a note on the model is not.
    own = [kind for kind in kinds if any(_is_source(name, known) for known in kind["bases"])]
    kind = own[0] if own else {**kinds[0], "note": None, "tags": []} if kinds else {}
    facts = {**_NO_FACTS, **base, **kind, **given}
    facts["tags"] = [*base.get("tags", ()), *kind.get("tags", ()), *given.get("tags", ())]
    for key in ("summary", "recipe"):
        if key in facts:
            facts[key] = facts[key].replace("{perturbed}", _perturbed(record))
    title = facts["base_title"]
    facts.setdefault("title", f"{title[0].upper()}{title[1:]}, fine-tuned with {facts['method_title']}")
    return facts


def find_speech(record: Mapping[str, Any], cards_dir: str | Path) -> dict[str, Any] | None:
    """Title, attribution and limits of the speech a run was trained on; `None` when it is of unknown origin."""
    for entry in read_json(Path(cards_dir) / "speech.json")["sources"]:
        if any(_is_source(located(record["data"]["source"]), known) for known in entry["match"]):
            return entry
    return None


def published_values(base: str, method: str) -> list[dict[str, str]]:
    """What the literature reports for a base model and a method on it, from the table of published values.

    Args:
        base: title of the base model, as in `bases.json`.
        method: as in the record of a run.

    Returns:
        Rows with `model`, `measure`, `value` and `source`.
    """
    known, rows = read_json(PUBLISHED), []
    for entry in known["values"]:
        if entry["base"] != base or entry["method"] not in ("base", method) or entry["column"] not in _COLUMNS:
            continue
        source = known["sources"][entry["source"]]
        second = ", quoted second-hand" if entry["evidence"] != "read" else ""
        row = {
            "model": base if entry["method"] == "base" else f"{base} with {_METHODS.get(method, method)}",
            "measure": _COLUMNS[entry["column"]],
            "value": f"{entry['value']} {'%' if entry['unit'] == 'percent' else entry['unit']}",
            "source": f"[{source['title']}]({source['url']}), {entry['place']}{second}",
        }
        # The same value may stand in several tables of a paper.
        if not any(row["model"] == r["model"] and row["measure"] == r["measure"] for r in rows):
            rows.append(row)
    return rows


def perturbations(record: Mapping[str, Any]) -> list[str]:
    """Names of what was done to the second version of every utterance, in turn."""
    data = record["recipe"]["data"]
    # Before a run could choose, it was speed and pitch.
    return list(data.get("perturbations", data.get("perturbation", ["speed_pitch"])) or ())


def listed(items: Sequence[Any]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _perturbed(record: Mapping[str, Any]) -> str:
    names = perturbations(record)
    return listed([_PERTURBED.get(name, f"changed by `{name}`") for name in names]) if names else "unchanged"


def _base_path(record: Mapping[str, Any]) -> str:
    """Hub id, or the path of the folder that the base model was loaded from."""
    if record["base_model"]["local"]:
        return located(record["recipe"]["model"]["model_name_or_path"])
    return record["base_model"]["name"]


def _is_source(name: str, known: str) -> bool:
    return f"/{known}/" in f"/{name.strip('/')}/"
