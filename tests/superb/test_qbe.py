"""Query by example: alignment against dtw-python, metric against its definition, the task end to end."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel

from laser_hf.superb import qbe
from laser_hf.superb.__main__ import main


@pytest.mark.parametrize("seed", range(12))
def test_costs_equal_dtw_python(seed):
    from dtw import dtw

    random = np.random.default_rng(seed)
    lengths = [*random.integers(1, 30, size=6).tolist(), 2, 1]
    distance = torch.from_numpy(random.random((int(random.integers(1, 15)), sum(lengths))))
    costs = qbe.subsequence_costs(distance, lengths)
    for cost, part in zip(costs, distance.split(lengths, dim=1), strict=True):
        expected = dtw(part.numpy(), step_pattern="asymmetric", open_begin=True, open_end=True, distance_only=True)
        assert float(cost) == pytest.approx(expected.normalizedDistance, abs=1e-12)


def test_documents_do_not_leak_into_each_other():
    distance = torch.rand(7, 40, dtype=torch.float64)
    lengths = [1, 2, 3, 14, 20]
    alone = [qbe.subsequence_costs(part, [part.shape[1]]) for part in distance.split(lengths, dim=1)]
    torch.testing.assert_close(qbe.subsequence_costs(distance, lengths), torch.cat(alone), rtol=0, atol=0)


def test_distances_follow_their_definition():
    torch.manual_seed(0)
    query, frames, lengths = torch.randn(4, 6), torch.randn(9, 6), [4, 5]
    found = qbe.distances(F.normalize(query, dim=1), F.normalize(frames, dim=1), lengths)
    for part, document in zip(found.split(lengths, dim=1), frames.split(lengths), strict=True):
        for row, frame in zip(part, query, strict=True):
            raw = torch.exp(1 - F.cosine_similarity(frame[None], document)) - 1
            torch.testing.assert_close(row, (raw - raw.min()) / (raw.max() - raw.min()), rtol=1e-4, atol=1e-5)


def test_a_query_cut_from_a_document_finds_it_and_short_queries_score_zero():
    torch.manual_seed(0)
    documents = [torch.randn(30 + 5 * n, 8) for n in range(5)]
    scores = qbe.match([documents[3][10:22], documents[1][:4]], documents)
    assert scores[0].argmax() == 3
    assert scores[0, 3] == pytest.approx(0, abs=1e-5)
    assert not scores[1].any()


def test_global_normalisation_is_over_all_frames():
    utterances = [torch.randn(n, 3) * 4 + 2 for n in (1, 5, 9)]
    frames = torch.cat(qbe.normalise_globally(utterances))
    torch.testing.assert_close(frames.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(frames.std(0), torch.ones(3))


def brute_force_average_precision(scores, targets):
    total = 0.0
    for index in np.flatnonzero(targets):
        ahead = [j for j in range(len(scores)) if scores[j] > scores[index] or j == index]
        total += sum(targets[j] for j in ahead) / len(ahead)
    return total / sum(targets)


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_equals_brute_force(seed):
    random = np.random.default_rng(seed)
    scores = random.permutation(20).astype(float)  # no ties
    targets = random.random(20) < 0.3
    targets[3] = True
    found = qbe.average_precision(torch.from_numpy(scores), torch.from_numpy(targets))
    assert found == pytest.approx(brute_force_average_precision(scores, targets))


def test_constant_scores_rank_targets_last():
    targets = torch.tensor([True, False, False, False])
    assert qbe.average_precision(torch.zeros(4), targets) == pytest.approx(1 / 4)
    assert math.isnan(qbe.average_precision(torch.zeros(4), torch.zeros(4, dtype=torch.bool)))


def test_mean_average_precision_uses_trials_only():
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    targets = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    trials = torch.tensor([[False, True, True], [True, True, True], [True, True, True]])
    assert qbe.mean_average_precision(scores, targets, trials) == pytest.approx((1 + 1 / 3) / 2)
    with pytest.raises(ValueError, match="no query has a target"):
        qbe.mean_average_precision(scores[2:], targets[2:], trials[2:])


def test_scores_are_normalised_over_trials_of_the_query():
    scores = torch.tensor([[1.0, 2.0, 3.0, 99.0], [5.0, 5.0, 5.0, 5.0]])
    trials = torch.tensor([[True, True, True, False], [True] * 4])
    found = qbe.normalise_scores(scores, trials)
    expected = torch.tensor([-1.0, 0.0, 1.0]) / math.sqrt(2 / 3)
    torch.testing.assert_close(found[0, :3], expected)
    assert found[0, 3].isnan()
    assert not found[1].any()


@pytest.fixture
def task_folder(tmp_path):
    """Two speakers, three recordings of noise; a and b hold the same sweep, which is the query."""
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    word = np.sin(np.cumsum(np.linspace(0.1, 0.6, 6000))) * 0.3
    audio = {name: random.normal(0, 0.05, 16000) for name in ("a", "b", "c")}
    for name in ("a", "b"):
        audio[name][5000:11000] += word
    for name, samples in audio.items():
        soundfile.write(folder / f"{name}.wav", samples, 16000)
    (folder / "queries.tsv").write_text(
        "query\taudio\tstart_seconds\tduration_seconds\tspeaker\tword\nq0\ta.wav\t0.3125\t0.375\t1\tsweep\n"
    )
    (folder / "documents.tsv").write_text("document\taudio\tspeaker\na\ta.wav\t1\nb\tb.wav\t2\nc\tc.wav\t2\n")
    (folder / "targets.tsv").write_text("query\tdocument\nq0\ta\nq0\tb\n")
    return folder


@pytest.mark.parametrize("model", ["mfcc", "logmel"])
def test_command_ranks_the_right_document_first(task_folder, tmp_path, model):
    out = tmp_path / "out"
    main(["qbe", "--model", model, "--data", str(task_folder), "--output_dir", str(out)])
    record = json.loads((out / "results.json").read_text())
    assert record["value"] == 1.0
    assert (record["task"], record["protocol"], record["queries"], record["documents"]) == (
        "qbe",
        "quick",
        1,
        3,
    )
    lines = [line.split("\t") for line in (out / "scores.tsv").read_text().splitlines()]
    assert lines[0] == ["query", "document", "score", "target"]
    assert [line[1] for line in lines[1:]] == ["b", "c"]  # not the speaker's own recording
    assert [line[2:] for line in lines[1:]] == [["1.0000", "1"], ["-1.0000", "0"]]


def test_command_on_an_encoder_reports_every_layer(task_folder, tmp_path):
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 8, 4),
        conv_stride=(10, 8, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    HubertModel(config).save_pretrained(tmp_path / "model")
    for model in (str(tmp_path / "model"), f"random:{tmp_path / 'model'}"):
        main(
            [
                "qbe",
                "--model",
                model,
                "--data",
                str(task_folder),
                "--output_dir",
                str(tmp_path),
                "--layer",
                "all",
            ]
        )
        record = json.loads((tmp_path / "results.json").read_text())
        assert list(record["layers"]) == ["0", "1", "2"]
        assert record["layer"] == 2
        assert record["value"] == record["layers"]["2"]
    with pytest.raises(ValueError, match="layers 0 to 2, not 7"):
        main(
            [
                "qbe",
                "--model",
                model,
                "--data",
                str(task_folder),
                "--output_dir",
                str(tmp_path),
                "--layer",
                "7",
            ]
        )


def test_summary_gathers_models(task_folder, tmp_path):
    summary = tmp_path / "qbe.json"
    for model in ("mfcc", "logmel", "mfcc"):
        arguments = [
            "qbe",
            "--model",
            model,
            "--data",
            str(task_folder),
            "--output_dir",
            str(tmp_path / "out"),
        ]
        main([*arguments, "--summary", str(summary)])
    systems = json.loads(summary.read_text())["systems"]
    assert [(system["name"], system["value"]) for system in systems] == [("logmel", 1.0), ("mfcc", 1.0)]


def test_tables_are_checked(task_folder):
    (task_folder / "targets.tsv").write_text("query\tdocument\nq9\ta\n")
    with pytest.raises(ValueError, match="unknown query or document"):
        qbe.read_data(task_folder)
    (task_folder / "targets.tsv").write_text("query\n")
    with pytest.raises(ValueError, match="lacks the columns document"):
        qbe.read_data(task_folder)
