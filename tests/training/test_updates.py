"""An update: its pairs sorted by length, completed on the device, cut into micro-batches, stepped once."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
import transformers
from conftest import make_model, make_waveform
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from laser_hf.data import PairDataset, PairTransform, Perturbation, SpeedPitch, load_speech, pad_pairs
from laser_hf.encoders import SpeechEncoder
from laser_hf.errors import LaserError
from laser_hf.objectives import LaserLoss, MseIdmLoss
from laser_hf.training import AlignmentModel, LaserTrainer, LaserTrainingArguments
from laser_hf.training.batches import cut_by_length, drawn_sides, memory_named, pack, stack_views, unpack
from laser_hf.training.model import pair_terms

NO_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout", "activation_dropout"), 0.0)


def pair(index: int, clean: int, perturbed: int | None = None) -> dict:
    """A pair of these lengths in samples; without a second length it is yet to be perturbed."""
    wave = torch.from_numpy(make_waveform(1.0, seed=index))
    view = None if perturbed is None else wave.flip(0)[:perturbed]
    drawn = {"speed": (0.9, 1.1)[index % 2], "pitch": (-2, 2)[index // 2 % 2]}
    return {"id": f"u{index}", "clean": wave[:clean], "perturbed": view, "drawn": drawn, "skip": ""}


LENGTHS = [(5000, 5600), (9000, 8200), (4000, 4400), (16000, 14500), (5000, 5600), (12000, 13000), (3000, 2800)]
PAIRS = [pair(index, *lengths) for index, lengths in enumerate(LENGTHS)]


def lengths_of(batch: dict) -> list[tuple[int, int]]:
    return list(zip(batch["clean_lengths"].tolist(), batch["perturbed_lengths"].tolist(), strict=True))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=12), st.integers(1, 6))
def test_the_cut_holds_every_pair_once_the_longest_first(lengths, count):
    pairs = [
        {"id": str(i), "clean": torch.full((m,), i + 1.0), "perturbed": torch.full((n,), -i - 1.0), "drawn": {"i": i}}
        | {"skip": ""}
        for i, (m, n) in enumerate(lengths)
    ]
    cut = cut_by_length(pairs, count)
    assert len(cut) == count
    assert max(len(batch["ids"]) for batch in cut) <= -(-len(pairs) // count)
    expected = sorted(range(len(pairs)), key=lambda i: -max(lengths[i]))  # stable: equal lengths in their order
    assert [int(name) for batch in cut for name in batch["ids"]] == expected
    assert [entry for batch in cut for entry in lengths_of(batch)] == [lengths[i] for i in expected]
    for batch in cut:
        for row, name in enumerate(batch["ids"]):
            pair = pairs[int(name)]
            for view in ("clean", "perturbed"):
                length = int(batch[f"{view}_lengths"][row])
                assert torch.equal(batch[view][row, :length], pair[view])
                assert not batch[view][row, length:].any()


BAD = {"id": "bad", "clean": None, "perturbed": None, "drawn": {}, "skip": "silent: all zeros"}


@given(st.lists(st.tuples(st.integers(1, 9), st.none() | st.integers(1, 9)), max_size=6))
def test_packing_is_undone_by_unpacking(lengths):
    pairs = [
        {
            "id": str(i),
            "clean": torch.rand(m),
            "perturbed": None if n is None else torch.rand(n),
            "drawn": {"speed": n},
            "skip": "",
        }
        for i, (m, n) in enumerate(lengths)
    ]
    packed = pack([*pairs, BAD])
    assert packed["samples"].shape == (sum(m + (n or 0) for m, n in lengths),)
    found = unpack(packed, "cpu")
    assert found.pop() == BAD
    for one, other in zip(found, pairs, strict=True):
        assert (one["id"], one["drawn"], one["skip"]) == (other["id"], other["drawn"], "")
        assert torch.equal(one["clean"], other["clean"])
        assert one["perturbed"] is other["perturbed"] is None or torch.equal(one["perturbed"], other["perturbed"])


def test_waveforms_go_to_the_device_and_lengths_stay():
    (batch,) = cut_by_length(unpack(pack(PAIRS), "meta"), 1)
    assert batch["clean"].device.type == batch["perturbed"].device.type == "meta"
    assert batch["clean_lengths"].device.type == batch["perturbed_lengths"].device.type == "cpu"


def test_perturbing_an_update_gives_what_the_workers_make(trainer):
    later = [pair(index, clean) for index, (clean, _) in enumerate(LENGTHS)]
    later[2] = PAIRS[2]  # made already
    completed = trainer._begin(pack(later), SimpleNamespace(perturbation=SpeedPitch()))()
    assert torch.equal(completed[2]["perturbed"], PAIRS[2]["perturbed"])
    for one, other in zip(completed, later, strict=True):
        if other["perturbed"] is None:
            assert torch.equal(one["perturbed"], SpeedPitch().apply(other["clean"], **other["drawn"]))
    with pytest.raises(LaserError, match="no attribute `perturbation`"):
        trainer._begin(pack(later), [])


def test_what_does_not_fit_into_memory_is_named(monkeypatch):
    config = transformers.HubertConfig()  # 512 channels, stride 5
    lengths = {"clean_lengths": torch.tensor([16000, 1800 * 16000]), "perturbed_lengths": torch.tensor([16000, 17000])}
    batch = {"ids": ["short", "long"], **lengths}
    needed = 4 * 2 * 2 * (1800 * 3200 * 512)  # rows, 16 bits, input and output of the first layer
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    memory = memory._replace(available=needed)
    with memory_named(batch, config, torch.device("cpu")):
        pass
    memory = memory._replace(available=needed - 1)
    with (
        pytest.raises(
            LaserError, match=r"utterance long of 1800 s, in a micro-batch of 2, .*: 47.2 GB .*--max_seconds or --crop"
        ),
        memory_named(batch, config, torch.device("cpu")),
    ):
        pytest.fail("it was begun")
    for error in (RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")):
        (small,) = cut_by_length([pair(5, 16000, 15000)], 1)
        with (
            pytest.raises(LaserError, match=r"utterance u5 of 1 s, .*--crop_seconds"),
            memory_named(small, config, torch.device("cpu")),
        ):
            raise error
    with pytest.raises(RuntimeError, match="a mistake"), memory_named(small, config, torch.device("cpu")):
        raise RuntimeError("a mistake")


# ---- rows of the model's input ----


def small_batch():
    lengths = {"a": (5, 7), "b": (6, 4), "c": (3, 3)}
    pairs = [
        {"id": name, "clean": torch.arange(1.0, m + 1), "perturbed": -torch.arange(1.0, n + 1), "drawn": {}, "skip": ""}
        for name, (m, n) in lengths.items()
    ]
    return pad_pairs(pairs)


def test_rows_and_their_lengths():
    waveforms, lengths = stack_views(small_batch())
    assert waveforms.shape == (6, 7)
    assert lengths.tolist() == [5, 6, 3, 7, 4, 3]
    for row, (length, sign) in enumerate(zip(lengths.tolist(), (1, 1, 1, -1, -1, -1), strict=True)):
        assert waveforms[row].tolist() == [sign * (i + 1) for i in range(length)] + [0] * (7 - length)


def test_swapped_pairs_change_sides_and_no_other():
    straight, lengths = stack_views(small_batch())
    swapped, swapped_lengths = stack_views(small_batch(), torch.tensor([True, False, True]))
    order = [3, 1, 5, 0, 4, 2]
    assert torch.equal(swapped, straight[order])
    assert torch.equal(swapped_lengths, lengths[order])


def test_sides_are_drawn_by_seed_update_and_utterance_alone():
    names = [f"utterance-{i}" for i in range(400)]
    sides = drawn_sides(1, 5, names)
    assert torch.equal(drawn_sides(1, 5, names[::-1]), sides.flip(0))
    assert 0.4 < sides.float().mean() < 0.6
    for other in (drawn_sides(2, 5, names), drawn_sides(1, 6, names)):
        assert 0.4 < (other == sides).float().mean() < 0.6  # as independent draws agree


# ---- the step ----


def make_trainer(folder, size=2, dataset=PAIRS, **options):
    """Of a tiny encoder without dropout, for updates of 7 pairs in micro-batches of `size`."""
    encoder = SpeechEncoder(make_model(layerdrop=0.0, apply_spec_augment=False, **NO_DROPOUT))
    encoder.freeze_except(2)
    torch.manual_seed(0)
    args = LaserTrainingArguments(
        output_dir=str(folder), pairs_per_update=7, per_device_train_batch_size=size, use_cpu=True, report_to="none",
        logging_steps=1, disable_tqdm=True, save_strategy="no", **options,
    )  # fmt: skip
    return LaserTrainer(AlignmentModel(encoder, 8), args, dataset, objective=LaserLoss(backend="reference"))


@pytest.fixture
def trainer(tmp_path):
    return make_trainer(tmp_path)


def gradients(trainer: LaserTrainer, monkeypatch) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one update in float64."""
    head = trainer.model.double().head
    # The head itself always gives float32.
    monkeypatch.setattr(head, "forward", lambda frames: nn.functional.normalize(head.projection(frames), dim=-1))
    pairs = [{**one, "clean": one["clean"].double(), "perturbed": one["perturbed"].double()} for one in PAIRS]
    loss = trainer.training_step(trainer.model, pack(pairs))
    found = {name: value.grad.clone() for name, value in trainer.model.named_parameters() if value.grad is not None}
    return float(loss), found


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}])
def test_activation_checkpointing_changes_no_gradient(kwargs, tmp_path, monkeypatch):
    """By the Trainer's call; behind frozen layers the re-entrant kind would train nothing."""
    _, expected = gradients(make_trainer(tmp_path), monkeypatch)
    trainer = make_trainer(tmp_path)
    # What transformers 5.20, the last one for Python 3.10, calls otherwise.
    kind = "activation" if hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable") else "gradient"
    enable = getattr(trainer.model, f"{kind}_checkpointing_enable")
    enable(**{f"{kind}_checkpointing_kwargs": kwargs}, every_n_layers=1)
    trainer.model.train()
    calls = []
    top = trainer.model.encoder.model.encoder.layers[-1]
    top.feed_forward.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    _, found = gradients(trainer, monkeypatch)
    assert len(calls) == 2 * 4  # each of the four micro-batches computes the layer twice
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({}, id="base"),
        pytest.param({"norm": "layer", "stable": True}, id="large"),
        pytest.param({"norm": "layer", "stable": True, "conv_bias": True, "num_hidden_layers": 5}, id="xlarge"),
        pytest.param({"kind": "wavlm"}, id="wavlm-base"),
        pytest.param({"kind": "wavlm", "norm": "layer", "stable": True}, id="wavlm-large"),
    ],
)
def test_checkpointing_with_the_layer_norm_in_front_of_all_layers(flags):
    """Of every architecture, at a small width: the same loss and gradients, and every layer computed twice."""
    found = []
    for checkpointing in (False, True):
        encoder = SpeechEncoder(make_model(**flags, layerdrop=0.0, apply_spec_augment=False, **NO_DROPOUT))
        encoder.freeze_except(2, encoder_layer_norm=True)
        torch.manual_seed(0)
        model = AlignmentModel(encoder, 8)
        model.objective = LaserLoss()
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        calls = []
        for layer in encoder.model.encoder.layers:
            layer.feed_forward.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        terms, _, _ = pair_terms(model, model, pad_pairs(PAIRS[:3]))
        terms["total"].sum().backward()
        gradients_of = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        assert "encoder.model.encoder.layer_norm.weight" in gradients_of
        found.append((terms["total"].detach(), gradients_of, len(calls)))
    (loss, expected, once), (own_loss, own, twice) = found
    assert torch.equal(loss, own_loss)
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=0, msg=name)
    # With a stable LayerNorm that stands behind the last layer, only trained layers have a gradient.
    assert once == encoder.num_layers
    assert twice == once + (2 if flags.get("stable") else once)


def test_micro_batches_give_loss_and_gradients_of_the_whole_update(tmp_path, monkeypatch):
    expected_loss, expected = gradients(make_trainer(tmp_path, 7), monkeypatch)
    largest = max(value.abs().max() for value in expected.values())
    assert largest > 1e-3
    for size, cut in ((1, [1] * 7), (2, [1, 2, 2, 2]), (3, [2, 2, 3])):
        trainer, sizes = make_trainer(tmp_path, size), []
        original = trainer.compute_loss
        monkeypatch.setattr(
            trainer,
            "compute_loss",
            lambda *a, **k: sizes.append(len(a[1]["ids"])) or original(*a, **k),  # noqa: B023
        )
        loss, found = gradients(trainer, monkeypatch)
        assert sizes == cut
        assert loss == pytest.approx(expected_loss, rel=1e-6)  # summed in float32
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12 * float(largest), msg=name)


def test_skipped_pairs_leave_the_mean_of_the_others(trainer, monkeypatch):
    whole = trainer.training_step(trainer.model, pack([*PAIRS[:3], BAD, BAD]))
    assert float(trainer.training_step(trainer.model, pack(PAIRS[:3]))) == pytest.approx(float(whole), rel=1e-6)
    assert trainer.skip_log.summary()["times"] == 2
    trainer.model.zero_grad()
    assert float(trainer.training_step(trainer.model, pack([BAD]))) == 0
    assert all(not value.grad.any() for value in trainer.model.parameters() if value.requires_grad)


@pytest.mark.slow
def test_a_line_of_the_log_has_loss_and_terms_of_the_same_pairs(tmp_path):
    """Updates of 7 and 1 pairs: the mean over 8 pairs is not the mean of the two updates."""
    data = [*PAIRS, pair(9, 2500, 2500)]
    runs = [make_trainer(tmp_path, 7, data, max_steps=2, learning_rate=1e-12) for _ in range(2)]
    runs[1].args.logging_steps, runs[1].args.logging_first_step = 2, False
    lines = []
    for one in runs:
        one.train()
        lines.append([entry for entry in one.state.log_history if "loss" in entry])
    (first, second), (both,) = lines
    assert both["loss"] == pytest.approx((7 * first["loss"] + second["loss"]) / 8, rel=1e-6)
    assert both["loss"] == pytest.approx(both["soft_dtw"] + 0.4 * both["idm"], rel=1e-6)
    assert both["loss"] != pytest.approx((first["loss"] + second["loss"]) / 2, rel=1e-3)


def test_no_graph_below_the_trained_layers(trainer):
    seen = {}

    def remember(name):
        def hook(module, inputs, output):
            seen[name] = (output if isinstance(output, torch.Tensor) else output[0]).grad_fn

        return hook

    model = trainer.model.train()
    inner = model.encoder.model
    inner.feature_extractor.register_forward_hook(remember("front-end"))
    inner.feature_projection.register_forward_hook(remember("projection"))
    for index, layer in enumerate(inner.encoder.layers):
        layer.register_forward_hook(remember(index))
    trainer.compute_loss(model, pad_pairs(PAIRS[:2]))
    assert seen["front-end"] is seen["projection"] is seen[0] is None
    assert seen[1] is not None
    assert seen[2] is not None


def test_loader_options_reach_the_data_loader(trainer, monkeypatch):
    args = trainer.args
    args.dataloader_num_workers, args.dataloader_prefetch_factor = 2, 3
    args.dataloader_persistent_workers = args.dataloader_pin_memory = True
    loader = trainer.get_train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 3, True)
    assert loader.pin_memory == torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trainer.get_train_dataloader().pin_memory
    args.dataloader_pin_memory = False
    assert not trainer.get_train_dataloader().pin_memory


class Reverse(Perturbation):
    def draw(self, rng):
        return {}

    def apply(self, waveform):
        return waveform.flip(0)


def test_views_that_do_not_fit_are_refused_at_once(trainer, small_tree):
    speech = load_speech(small_tree)
    data = PairDataset(speech, PairTransform(Reverse(), perturb=False))
    with pytest.raises(LaserError, match="Reverse"):
        LaserTrainer(trainer.model, trainer.args, data)
    with pytest.raises(LaserError, match="keep the duration"):
        LaserTrainer(trainer.model, trainer.args, PairDataset(speech, PairTransform(SpeedPitch())), None, MseIdmLoss())
