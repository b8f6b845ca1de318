"""The card says what the records say, and nothing else."""

from __future__ import annotations

import json
import os
import re
import warnings
from functools import partial
from pathlib import Path

import hypothesis
import pytest
from conftest import REPOSITORY
from huggingface_hub import ModelCard
from hypothesis import strategies as st

from laser_hf.errors import LaserError
from laser_hf.objectives import OBJECTIVES
from laser_hf.publishing import card as card_module
from laser_hf.publishing.card import number, placeholders
from laser_hf.publishing.facts import read_results

from .conftest import BASE_DIGEST, CONFIG, DIGEST, make_conversion, make_record, make_result, read, render

GOLDEN = Path(__file__).parent / "golden"
PLOTS = ["plots/alignment.png", "plots/loss_terms.png", "plots/words.png", "plots/own.png"]


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
    ratio = {"metric": "ratio", "unit": "", "split": "heldout", "layer": 12}
    base = {"model": "some/where", "weights_sha256": BASE_DIGEST, "metrics": [{**ratio, "value": 0.75}]}
    words = {"task": "discrimination", "metrics": [{**ratio, "value": 0.6875}], "base": base}
    return [*paths, make_result(folder / "words", "outputs/one", DIGEST, **words)]


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
    terms = OBJECTIVES[method].term_names[1:]
    if method == "spin":
        record["recipe"]["perturbations"] = {"name": ["voice", "equalizer"], "speaker_f0": None}
        record["recipe"]["data"].update(crop_seconds=17.0)
        record["recipe"]["training"].update(seconds_per_update=256.0, coupled_weight_decay=True)
        record["recipe"]["training"].update(
            lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"min_lr_ratio": 0.01}
        )
    for when in ("first", "last"):
        logged = record[when]
        values = [logged.pop("eval_soft_dtw"), logged.pop("eval_idm")]
        logged.update({f"eval_{term}": value for term, value in zip(terms, values, strict=False)})
    options = {option.dest: option.default for option in OBJECTIVES[method].options}
    record["recipe"]["objective"] = {"name": method, **options}
    return {**record, "method": method, "preset": f"constructed for a test of the {method} card"}


KINDS = {
    "hubert-laser": make_record,
    "wavlm-laser": lambda: make_record("wavlm"),
    "demo": demo_record,
    **{method: partial(other_record, method) for method in OBJECTIVES if method != "laser"},
}


# ------------------------------------------------------------------------------------------------ the whole card


def noise_record() -> dict:
    record = make_record()
    noise = {"name": ["noise"], "noise_dir": "/data/demand", "noise_snrs": [20.0, 10.0, 5.0]}
    record["recipe"]["perturbations"] = noise
    return {**record, "preset": "hubert-base-noise"}


FOREIGN = """
import torch
from laser_hf.data import Perturbation
from laser_hf.objectives import Objective
from laser_hf.plugins import Option

class Pull(Objective):
    title, summary = "Pull", "Pulls the means of the two views together."
    options = (Option("strength", 1.0, "how hard it pulls", above=0),)
    term_labels = {"total": "total loss", "far": "distance of the means"}

    def terms(self, x, m, y, n):
        far = (x.mean(1) - y.mean(1)).norm(dim=-1)
        return {"total": self.strength * far, "far": far}

class Louder(Perturbation):
    changes = ("loudness",)
    options = (Option("decibels", [6.0], "gains in dB", many=True),)

    def __init__(self, decibels):
        self.decibels = decibels

    def draw(self, rng):
        return {"gain": self.decibels[0]}

    def apply(self, waveform, *, gain):
        return waveform * 10 ** (gain / 20)
"""


@pytest.fixture
def own_record(tmp_path, monkeypatch):
    """A run with an objective and a perturbation of one's own."""
    (tmp_path / "own_methods.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    record = make_record()
    record["recipe"]["objective"] = {"name": "own_methods:Pull", "strength": 2.5}
    record["recipe"]["perturbations"] = {"name": ["own_methods:Louder"], "decibels": [3.0, 6.0]}
    for when, value in (("first", 4.5), ("last", 1.25)):
        record[when]["eval_far"] = {"step": 1, "value": value}
    return {**record, "method": "own_methods:Pull", "changed_from_preset": ["objective"]}


GERMAN = {
    "speech": {
        "title": "Our interviews",
        "licence": "cc-by-4.0",
        "languages": "de",
        "limits": "German of one region, recorded in a studio.",
    }
}


def german_record() -> dict:
    record = make_record()
    record["data"].update(source="/data/interviews", local=True, name=None, split=None, utterances=1)
    return {**record, "updates": 1, "processed_hours": 1.0, "changed_from_preset": ["train_data"]}


def seed_results(folder: Path) -> list[Path]:
    """What was measured of a run, of two more with other seeds and of their base model."""
    found = []
    for name, digest, value in (
        ("own", DIGEST, 6.1),
        ("2", "d" * 64, 6.3),
        ("3", "e" * 64, 6.2),
        ("b", BASE_DIGEST, 7),
    ):
        asr = {"metrics": [{"metric": "wer", "value": value, "unit": "percent", "split": "test-clean"}]}
        found.append(make_result(folder / name, f"outputs/{name}", digest, task="asr", **asr))
    return found


def subset_results(folder: Path) -> list[Path]:
    """Numbers from parts of a test set, and heads that were trained on parts of a training set."""
    wer = {"metrics": [{"metric": "wer", "value": 40.0, "unit": "percent", "split": "test-clean"}], "protocol": "quick"}
    train = {"split": "train-clean-100", "utterances": 1000, "skipped": {}}
    ctc = {"source": "LibriSpeech", "split": "test-clean", "utterances": 100, "skipped": {}, "head_training": train}
    test = [{"split": "test-clean", "utterances": 2619, "skipped": {"utterances": 1}}]
    mtwv = {"metric": "mtwv", "value": 0.0712, "unit": "fraction", "split": "eval", "layer": 12, "trials": "subset"}
    collection = {"split": "eval", "queries": 40, "collection": {"queries_with_target": 395}, "skipped": {}}
    task, given = {"task": "ctc", **wer}, {"max_utterances": 100, "train_head": "train-clean-100"}
    head = {"max_train_utterances": 1000}
    asr = {"data": {"test": test, "train": train}, "recipe": head, "task": "asr", **wer}
    return [
        make_result(folder / "ctc", "x", DIGEST, data=ctc, recipe=given, **task),
        make_result(folder / "asr", "x", DIGEST, **asr),
        make_result(folder / "qbe", "x", DIGEST, data=collection, recipe={}, metrics=[mtwv]),
    ]


def golden_card(name: str, folder: Path, own: dict) -> str:
    """The card of a kind."""
    if name == "laser":
        return render(make_record(), read(folder, *sample_results(folder))[0], plots=PLOTS)
    if name == "seeds":
        own_result, second, third, base = seed_results(folder)
        files = {"results/asr.json": own_result, "results/asr_base.json": base}
        files |= {"results/seed-2/asr.json": second, "results/seed-3/asr.json": third}
        results, _ = read_results(files, DIGEST, BASE_DIGEST, "facebook/hubert-base-ls960", ["org/hubert-laser"])
        return render(make_record(), results)
    if name == "subsets":
        return render(make_record(), read(folder, *subset_results(folder))[0])
    if name == "german":
        return render(german_record(), given=GERMAN)
    if name == "converted":
        return render(make_conversion(), given={"method": "laser"})
    record = {"noise": noise_record, "own": lambda: own, "demo": demo_record}.get(name, partial(other_record, name))()
    return render(record, read(folder, make_result(folder / "qbe", "outputs/one", DIGEST))[0], plots=PLOTS)


@pytest.mark.parametrize(
    "name",
    [
        "laser",
        "score",
        "spin",
        "soft_dtw",
        "mse_idm",
        "noise",
        "own",
        "demo",
        "converted",
        "seeds",
        "subsets",
        "german",
    ],
)
def test_whole_cards_against_golden_texts(name, tmp_path, own_record):
    """Each was looked at as a page. `UPDATE_GOLDEN=1 pytest` writes them anew."""
    card = golden_card(name, tmp_path, own_record)
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / f"{name}.md").write_text(card)
    assert card == (GOLDEN / f"{name}.md").read_text()
    assert placeholders(card) == []
    for table in tables(card):
        assert len({len(row) for row in table}) == 1, table


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
            known.update({number(value), number(abs(value)), str(value), f"{value:,}", f"{value:.2g}"})

    for record in records:
        visit(record)
        known.update(f"{value['value'] / 100:.4f}" for value in record.get("values", ()) if value["column"] == "mtwv")
    known.update(str(len(record["runs"])) for record in records if "runs" in record)
    known.add(card_module._duration(records[0]["wall_seconds"]).split()[0])
    cells = [cell for table in tables(card) for row in table[2:] for cell in row]
    cells += [
        line.replace(" and its two views once", "") for line in re.findall(r"^- \*\*Training.*$", card, re.MULTILINE)
    ]
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
        json.loads((REPOSITORY / "laser_hf" / "superb" / "published.json").read_text()),
        *(json.loads(p.read_text()) for p in paths),
    ]
    assert numbers_without_record(card, *records) == []
    if evaluated:
        assert numbers_without_record(card.replace("0.6875", "0.6876"), *records) == ["0.6876"]
    assert "speaker" in card.split("## Limits")[1]
    assert "CC BY 4.0" in card


def test_own_objectives_and_perturbations_describe_themselves(own_record):
    card = render(own_record)
    assert placeholders(card) == []
    assert "# HuBERT base, fine-tuned with Pull" in card
    assert "and with changed loudness" in card
    assert "Pulls the means of the two views together." in card
    assert settings(card)["strength"] == "2.5"
    assert settings(card)["decibels"] == "3, 6"
    assert "| distance of the means | 4.5 | 1.25 |" in card
    assert "## Citation" not in card
    assert parse(card).data.tags[0] == "Pull"


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
        "base_model_relation": "finetune",
        "datasets": ["openslr/librispeech_asr"],
    }


def test_an_unevaluated_model_says_so_first():
    assert "> **Not evaluated.**" in parse(render(make_record())).text.split("## Results")[0]


def test_wavlm_carries_its_own_licence():
    card = render(make_record("wavlm"))
    assert parse(card).data.license == "cc-by-sa-3.0"
    assert "WavLM base" in card
    assert "microsoft/wavlm-base" in card


def test_collapse_is_reported_at_the_top():
    record = make_record()
    record["collapse"]["fired_at"] = 1200
    assert "collapse was reported in training**, at update 1200" in parse(render(record)).text.split("## Results")[0]


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
    assert parse(card).data.datasets == ["openslr/librispeech_asr"]  # what the folder holds is known


def test_speech_of_the_users_own():
    card = render(german_record(), given=GERMAN)
    assert parse(card).data.language == ["de"]
    assert "English" not in card.split("## Results")[0].replace("(English read speech", "")
    assert "- German of one region, recorded in a studio." in card
    assert "Fine-tuning speech: Our interviews, under CC BY 4.0." in card
    assert "1 update in" in card
    assert "1 hour of speech processed" in card
    assert "(1 utterance)" in card
    unknown = render(german_record())
    assert parse(unknown).data.language is None
    assert "- **Language:** not recorded" in unknown


def test_the_literature_only_for_the_very_recipe(own_record):
    said = "What the literature reports for this recipe"
    card = render(make_record())
    assert said in card
    assert "| 0.0719 |" in card  # in the unit of our own rows
    assert "7.19" not in card
    changed = {**make_record(), "changed_from_preset": ["alpha", "margin", "max_steps"]}
    old = make_record()
    del old["changed_from_preset"]
    for record in (changed, old, noise_record(), own_record, demo_record()):
        assert said not in render(record)


def test_noise_makes_no_claim_about_speakers():
    card = render(noise_record())
    assert "# HuBERT base, fine-tuned to be noise-robust with LASER" in card
    assert "Noise Robust Speech Representations" in card
    assert "meghanani_nrssft" in card
    assert "noise-robust" in parse(card).data.tags
    assert "and with changed background noise" in card
    assert "Nothing was done to remove what tells speakers apart." in card
    assert "*who* says it" not in card
    assert "meant to remove what tells speakers apart" not in card
    assert "meant to remove what tells speakers apart" in render(make_record())


def test_pictures_have_captions_and_the_most_telling_one_comes_first():
    card = render(make_record(), plots=PLOTS)
    shown = re.findall(r"^!\[(.*)\]\((.*)\)\n\n\*(.*)\*$", card, re.MULTILINE)
    assert [path for _, path, _ in shown] == [f"plots/{n}.png" for n in ("words", "alignment", "loss_terms", "own")]
    assert all(name == path.removeprefix("plots/") and caption for name, path, caption in shown)


def test_converted_checkpoints():
    card = render(make_conversion(), given={"method": "laser", "title": "The authors' LASER"})
    assert parse(card).data.to_dict()["base_model"] == "facebook/hubert-base-ls960"
    assert "# The authors' LASER" in card
    assert "fine-tuned by [LASER](https://arxiv.org/abs/2406.09153)" in card
    assert "## Training" not in card
    assert "`encoder.layers.11`" in card
    assert "tells speakers apart" not in card  # nobody knows how it was trained
    with pytest.raises(LaserError, match="above all its licence"):
        render(make_conversion(base=None))
    card = render(make_conversion(base=None), given={"licence": "mit", "base_title": "Some HuBERT"})
    assert parse(card).data.base_model is None
    assert placeholders(card) == []


def test_results_of_an_earlier_revision_are_another_models(tmp_path):
    path = make_result(tmp_path / "old", "org/hubert-laser", "f" * 64)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "model_revision": "0123456789abcdef"}))
    results, _ = read(tmp_path, path)
    assert "| org/hubert-laser at 0123456 |" in render(make_record(), results)


def test_the_demo_encoder_and_speech_are_known():
    card = render(demo_record())
    assert "# A small demo HuBERT, fine-tuned with LASER" in card
    assert "synthetic speech of the laser_hf demo, the local folder `train`" in card
    assert parse(card).data.license == "cc-by-4.0"
    assert parse(card).data.base_model is None


def test_no_held_out_speech():
    record = make_record()
    for when in ("first", "last"):
        record[when] = {key: value for key, value in record[when].items() if not key.startswith("eval_")}
    assert "No held-out speech was used in training." in render(record)


def test_incomplete_records_are_refused():
    record = make_record()
    del record["recipe"]["training"]["learning_rate"]
    with pytest.raises(LaserError, match="learning_rate"):
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
    swapped = "cross-entropy: clean frames, codes of the perturbed view"
    assert f"| {swapped} | 224.5 | 198.8 |" in render(other_record("spin"))


def settings(card: str) -> dict[str, str]:
    """Values of the table of settings: by the name of the option where one is given, else by the label."""
    rows = [row for table in tables(card) if table[0] == ["setting", "value"] for row in table[2:]]
    return {(re.findall(r"\(`(\w+)`\)$", label) or [label])[0]: value for label, value in rows}


def test_the_size_of_an_update_and_the_perturbation_are_the_runs():
    found = settings(render(make_record()))
    assert found["pairs of an update"] == "8"
    assert found["perturbation"] == "`speed_pitch`"
    assert found["speed_factors"] == "0.9, 1, 1.1"
    assert found["pitch_steps"] == "-2, 2"
    assert found["schedule of the learning rate"] == "linear"
    seconds, piece = "source speech of an update, at most, seconds", "longest piece of an utterance, seconds"
    assert not {seconds, piece} & set(found)
    card = render(other_record("spin"))
    found = settings(card)
    assert (found[seconds], found[piece]) == ("256", "17")
    assert (found["optimiser"], found["options of the schedule"]) == (
        "Adam with L2 regularisation",
        "min_lr_ratio 0.01",
    )
    assert found["schedule of the learning rate"] == "warmup_stable_decay"
    assert found["perturbation"] == "`voice`, `equalizer`"
    assert found["codes"] == "256"
    assert "pairs of an update" not in found
    assert "speed" not in card


def test_noise_is_named_and_its_licence_not_invented():
    card = render(noise_record())
    assert settings(card)["noise_dir"] == "demand"
    assert settings(card)["noise_snrs"] == "20, 10, 5"
    assert (
        "Noise from the local folder `demand` was added in training; its origin and licence\nare not recorded." in card
    )
    assert "/data/" not in card
    assert "demand" not in render(make_record())


HOSTILE = "a`b|c\n# d <img src=x onerror=alert(1)> [e](javascript:alert(1)) \u2028\udce9"


def without_code(card: str) -> str:
    return re.sub(r"`[^`]*`", "", re.sub(r"```.*?```", "", card, flags=re.DOTALL))


def test_foreign_names_are_only_shown(tmp_path):
    record = make_record()
    record["base_model"].update(revision=HOSTILE)
    record["data"].update(source=f"/speech/{HOSTILE}", local=True, name=HOSTILE, split=HOSTILE)
    record["recipe"]["perturbations"] = {"name": ["noise"], "noise_dir": f"/noise/{HOSTILE}", "noise_snrs": [5.0]}
    record["hardware"]["gpus"] = [HOSTILE]
    metrics = [{"metric": HOSTILE, "value": 1.5, "unit": HOSTILE, "split": HOSTILE}]
    for name, digest in (("own", DIGEST), ("other", None)):
        make_result(tmp_path / name, HOSTILE, digest, task=HOSTILE, metrics=metrics)
    files = {f"results/{HOSTILE}{n}.json": tmp_path / n / "results.json" for n in ("own", "other")}
    results, _ = read_results(files, DIGEST, None, "base", [])
    card = render({**record, "preset": HOSTILE}, results, plots=[f"plots/{HOSTILE}.png"])
    card.encode()
    for table in tables(card.replace("\\|", "")):
        assert len({len(row) for row in table}) == 1, table
    outside = without_code(card)
    assert "<img" not in outside
    assert not re.search(r"(?<!\\)\]\(javascript", outside)
    assert not re.search(r"^# d", card, flags=re.MULTILINE)
    assert card.count("onerror=alert") > 5
    # The links to files are whole: no space, bracket or line end in a target.
    assert "](results/a%60b%7Cc%0A%23%20d%20%3Cimg" in outside


@hypothesis.given(st.text(alphabet="ab`|<>[]()!*~\\&\n\r\u2028\ud800 _#-", max_size=20))
def test_escapes_hold_for_any_text(name):
    for shown in (card_module.text(name), card_module.code(name)):
        assert "\n" not in shown
        shown.encode()
        assert not re.search(r"(?<!\\)(\\\\)*\|", shown)
    assert not re.search(r"<|(?<!\\)(\\\\)*[`*\[\]]", card_module.text(name))
    assert "`" not in card_module.code(name)[1:-1]
