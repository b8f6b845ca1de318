"""The card says what the records say, and nothing else."""

from __future__ import annotations

import json
import os
import re
import warnings
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from laser_hf.publishing import card as card_module
from laser_hf.publishing.card import CardError, placeholders
from laser_hf.publishing.evaluation import number
from laser_hf.publishing.facts import PUBLISHED

from .conftest import BASE_DIGEST, CARDS, CONFIG, DIGEST, make_record, make_result, read, render

GOLDEN = Path(__file__).parent / "golden_card.md"
PLOTS = ["plots/alignment.png", "plots/loss_terms.png"]


def parse(card: str) -> ModelCard:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ModelCard(card)


def sample_results(folder: Path) -> list[Path]:
    """Records of this model, of its base model and of another one, and a report of words."""
    asr = {"metrics": [{"metric": "wer", "value": 6.4172, "unit": "percent", "split": "test-clean"}]}
    mean = {"metric": "wer", "value": 6.1839, "unit": "percent", "split": "test-clean", "standard_deviation": 0.0517}
    repeated = {"metrics": [mean], "runs": [{"seed": seed} for seed in (1, 2, 3)]}
    paths = [
        make_result(folder / "asr", "outputs/one", DIGEST, task="asr", **repeated),
        make_result(folder / "asr_base", "facebook/hubert-base-ls960", BASE_DIGEST, task="asr", **asr),
        make_result(folder / "pr", "outputs/one", DIGEST, task="pr"),
        make_result(folder / "qbe", "outputs/one", DIGEST),
        make_result(folder / "qbe_mfcc", "mfcc", None),
    ]
    (folder / "words").mkdir(parents=True)
    report = {"task": "word discrimination", "written": "2026-11-21T07:00:00+00:00",
              "before": {"ratio": 0.75, "words": 9}, "after": {"ratio": 0.6875, "words": 9}}  # fmt: skip
    (folder / "words" / "results.json").write_text(json.dumps(report))
    return [*paths, folder / "words" / "results.json"]


def demo_record() -> dict:
    record = make_record()
    folder = "{laser_hf}/demo"
    record["base_model"].update(name="encoder", local=True, revision=None)
    record["recipe"]["model"]["model_name_or_path"] = f"{folder}/encoder"
    record["data"].update(source=f"{folder}/speech/train", name=None, split=None)
    return {**record, "preset": "demo"}


def other_record(method: str) -> dict:
    """Made up: no run of this method stands behind it."""
    record = make_record("wavlm" if method == "spin" else "hubert")
    objective = {"gamma": 0.1}
    if method == "spin":
        objective = {"codes": 256, "temperature": 0.1, "epsilon": 0.02, "iterations": 3}
        record["recipe"]["data"].update(perturbations=["voice", "equalizer"], crop_seconds=17.0)
        record["recipe"]["training"].update(pairs_per_update=None, seconds_per_update=256.0)
        record["recipe"]["training"].update(coupled_weight_decay=True, min_learning_rate=1e-6)
        for when in ("first", "last"):
            logged = record[when]
            logged["eval_swapped_x"], logged["eval_code_perplexity"] = (
                logged.pop("eval_soft_dtw"),
                logged.pop("eval_idm"),
            )
    record["recipe"]["objective"] = {"name": method, **objective}
    return {**record, "method": method, "preset": f"constructed for a test of the {method} card"}


KINDS = {
    "hubert-laser": make_record,
    "wavlm-laser": lambda: make_record("wavlm"),
    "demo": demo_record,
    **{method: partial(other_record, method) for method in ("soft_dtw", "score", "spin")},
}


# ------------------------------------------------------------------------------------------------ the whole card


def test_whole_card_against_the_golden_text(tmp_path):
    results, unread = read(tmp_path, *sample_results(tmp_path))
    assert unread == []
    card = render(make_record(), results, plots=PLOTS)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(card)
    assert card == GOLDEN.read_text()
    assert placeholders(card) == []


def tables(card: str) -> list[list[list[str]]]:
    """Cells of all tables, rule lines included."""
    found: list[list[list[str]]] = [[]]
    for line in re.sub(r"```.*?```", "", card, flags=re.DOTALL).splitlines():
        if line.startswith("|"):
            assert line.endswith("|"), line
            found[-1].append([cell.strip() for cell in line[1:-1].split("|")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def numbers_without_record(card: str, *records) -> list[str]:
    """Numbers of the card's tables and of the training's summary that stand in none of the records."""
    known, texts = {"0"}, []

    def visit(value):
        if isinstance(value, dict | list):
            for entry in value.values() if isinstance(value, dict) else value:
                visit(entry)
        elif isinstance(value, str):
            texts.append(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            known.update({number(value), number(abs(value)), str(value), f"{value:,}"})

    for record in records:
        visit(record)
    known.update(str(len(record["runs"])) for record in records if "runs" in record)
    known.add(card_module._duration(records[0]["wall_time_seconds"]).split()[0])
    cells = [cell for table in tables(card) for row in table[2:] for cell in row]
    cells += re.findall(r"^In .* updates.*\n.*hours of it", card, flags=re.MULTILINE)
    unknown = []
    for cell in cells:
        cell = re.sub(r"\]\([^)]*\)|\(\w+\)", "]", cell)
        for text in sorted(texts, key=len, reverse=True):
            cell = cell.replace(text, " ") if re.search(r"\d", text) else cell
        cell = re.sub(r"[A-Za-z_][\w.-]*", " ", cell)
        unknown += [n for n in re.findall(r"\d[\d,.]*(?:e-?\d+)?", cell) if n.strip(",.") not in known]
    return unknown


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cards_of_all_kinds_are_whole(kind, evaluated, tmp_path):
    record = KINDS[kind]()
    paths = sample_results(tmp_path) if evaluated else []
    results, _ = read(tmp_path, *paths, base=record["base_model"]["name"])
    card = render(record, results, plots=PLOTS)
    assert placeholders(card) == []
    assert ("**Not evaluated.**" in card) is not evaluated
    assert len(tables(card)) >= 2
    for table in tables(card):
        assert len({len(row) for row in table}) == 1, table
        assert all(re.fullmatch("-+", cell) for cell in table[1])
        assert len(table) > 2, table
        assert all(cell for row in table for cell in row), table
    sections = re.split(r"^#+ (.*)$", parse(card).text, flags=re.MULTILINE)
    assert all(text.strip() for text in sections[2::2]), sections
    for title in ("Use", "Results", "Training", "Limits and risks", "Licence and attribution", "Citation"):
        assert title in sections[1::2]
    records = [
        record,
        CONFIG,
        json.loads(PUBLISHED.read_text()),
        *(json.loads(p.read_text()) for p in paths),
    ]
    assert numbers_without_record(card, *records) == []
    if evaluated:
        assert numbers_without_record(card.replace("0.6875", "0.6876"), *records) == ["0.6876"]
    assert "speaker" in card.split("## Limits")[1]
    assert "CC BY 4.0" in card


def test_kinds_have_facts_files():
    assert {path.stem for path in CARDS.glob("*.json")} == {*KINDS, "bases", "speech"}
    keys = set(json.loads((CARDS / "hubert-laser.json").read_text()))
    for name in KINDS:
        facts = json.loads((CARDS / f"{name}.json").read_text())
        assert set(facts) == keys, name
    for base in json.loads((CARDS / "bases.json").read_text())["bases"]:
        assert re.fullmatch(r"[a-z0-9.-]+", base["licence"])
        assert base["licence_text"]
    for entry in json.loads((CARDS / "speech.json").read_text())["sources"]:
        assert set(entry) == {"match", "title", "attribution", "limits"}


# ---------------------------------------------------------------------------------------------------- its parts


def test_front_matter():
    data = parse(render(make_record())).data.to_dict()
    assert data == {
        "language": ["en"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["laser", "speech", "self-supervised", "hubert"],
        "base_model": "facebook/hubert-base-ls960",
        "datasets": ["openslr/librispeech_asr"],
    }


def test_an_unevaluated_model_says_so_first():
    assert parse(render(make_record())).text.strip().startswith("> **Not evaluated.**")


def test_wavlm_carries_its_own_licence():
    card = render(make_record("wavlm"))
    assert parse(card).data.license == "cc-by-sa-3.0"
    assert "WavLM base" in card
    assert "microsoft/wavlm-base" in card


def test_collapse_is_reported_at_the_top():
    record = make_record()
    record["collapse"]["fired_at"] = 1200
    assert "collapse was reported in training**, at update 1200" in parse(render(record)).text[:600]


def test_unknown_speech_is_said_to_be_unknown():
    record = make_record()
    record["data"].update(source="/data/recordings", name=None, split=None)
    card = render(record)
    assert "origin and licence of the fine-tuning speech (the local folder `recordings`) are not recorded" in card
    assert "LibriSpeech](https://www.openslr.org" not in card
    assert parse(card).data.datasets is None
    assert "/data" not in card


def test_a_local_folder_that_looks_like_a_hub_id():
    record = make_record()
    record["data"].update(source="LibriSpeech/train-clean-5", local=True, name=None, split=None)
    card = render(record)
    assert "the local folder `train-clean-5`" in card
    assert "huggingface.co/datasets/LibriSpeech" not in card
    assert parse(card).data.datasets is None


def test_the_demo_encoder_and_speech_are_known():
    card = render(demo_record())
    assert "# The small HuBERT that laser_hf ships for its demo, fine-tuned with LASER" in card
    assert "synthetic speech of the laser_hf demo, the local folder `train`" in card
    assert parse(card).data.base_model is None


def test_no_held_out_speech():
    record = make_record()
    for when in ("first", "last"):
        record[when] = {key: value for key, value in record[when].items() if not key.startswith("eval_")}
    assert "No held-out speech was used in training." in render(record)


def test_incomplete_records_are_refused():
    record = make_record()
    del record["recipe"]["training"]["learning_rate"]
    with pytest.raises(CardError, match="learning_rate"):
        render(record)


@pytest.mark.parametrize("gap", ["{{ name }}", "TODO", "[More Information Needed]", "None", "{% if %}", "nan"])
def test_gaps_are_found(gap):
    assert placeholders(f"# Title\n\nWER: {gap} %\n")[0].startswith("line 3: ")


def test_words_that_only_look_like_gaps():
    assert placeholders("Finance, none of them, nano, todos, undefinable {a}") == []


def test_methods_without_a_regularisation_say_nothing_about_it():
    for method in ("soft_dtw", "score", "spin"):
        card = render(other_record(method))
        assert "IDM" not in card.split("| setting |")[1].split("Terms of the loss")[0], method
    assert "| swapped prediction, from the first version | 224.5 | 198.8 |" in render(other_record("spin"))


def settings(card: str) -> dict[str, str]:
    return {row[0]: row[1] for table in tables(card) if table[0] == ["setting", "value"] for row in table[2:]}


def test_the_size_of_an_update_and_the_perturbation_are_the_runs():
    found = settings(render(make_record()))
    assert found["pairs an update"] == "8"
    assert found["perturbation"] == "`speed_pitch`"
    assert (found["speed factors"], found["pitch shifts in semitones"]) == ("0.9, 1, 1.1", "-2, 2")
    assert not {"source speech an update, at most", "longest excerpt of an utterance", "noise"} & set(found)
    record = other_record("spin")
    record["recipe"]["training"]["pairs_per_update"] = 8  # a default that had no effect
    card = render(record)
    found = settings(card)
    assert found["source speech an update, at most"] == "256 seconds"
    assert found["longest excerpt of an utterance"] == "17 seconds"
    assert found["optimiser"] == "Adam (L2)"
    assert found["schedule"].endswith(" updates of warm-up, from and to 1e-06")
    assert found["perturbation"] == "`voice`, `equalizer`"
    assert found["entries of the codebook (codes)"] == "256"
    assert not {"pairs an update", "speed factors", "pitch shifts in semitones", "signal-to-noise ratios in dB"} & set(
        found
    )
    assert "speed and pitch" not in card


def test_noise_is_named_and_its_licence_not_invented():
    record = make_record()
    record["recipe"]["data"].update(perturbations=["noise"], noise_dir="/data/demand")
    card = render(record)
    assert settings(card)["noise"] == "the local folder `demand`"
    assert settings(card)["signal-to-noise ratios in dB"] == "20, 10, 5"
    assert (
        "Noise from the local folder `demand` was added in training; its origin and licence are not recorded." in card
    )
    assert "/data/" not in card
    record["recipe"]["data"]["perturbations"] = ["speed_pitch"]
    assert "demand" not in render(record)
