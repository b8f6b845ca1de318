"""Pairs sorted by length within an update: the same update with less padding."""

from __future__ import annotations

import pytest
import torch
from conftest import make_model, make_waveform
from torch import nn

from laser_hf.data import PairCollator, Perturbation, SpeedPitch
from laser_hf.encoders import SpeechEncoder
from laser_hf.objectives import LaserLoss
from laser_hf.training import AlignmentModel, LaserTrainer, LaserTrainingArguments
from laser_hf.training.micro_batches import cut_by_length, padding, perturb_pairs, split_batch, to_device

NO_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout", "activation_dropout"), 0.0)


def pair(index: int, clean: int, perturbed: int | None = None) -> dict:
    """A pair of these lengths in samples; without a second length it is yet to be perturbed."""
    wave = torch.from_numpy(make_waveform(1.0, seed=index))
    view = None if perturbed is None else wave.flip(0)[:perturbed]
    drawn = {"speed": (0.9, 1.1)[index % 2], "pitch": (-2, 2)[index // 2 % 2]}
    return {"id": f"u{index}", "clean": wave[:clean], "perturbed": view, "drawn": drawn, "skip": ""}


LENGTHS = [(5000, 5600), (9000, 8200), (4000, 4400), (16000, 14500), (5000, 5600), (12000, 13000), (3000, 2800)]
PAIRS = [pair(index, *lengths) for index, lengths in enumerate(LENGTHS)]


def batches_of(pairs: list[dict], size: int) -> list[dict]:
    return [PairCollator()(pairs[first : first + size]) for first in range(0, len(pairs), size)]


def test_splitting_undoes_the_collator():
    found = [one for batch in batches_of(PAIRS, 3) for one in split_batch(batch)]
    for one, other in zip(found, PAIRS, strict=True):
        assert (one["id"], one["drawn"]) == (other["id"], other["drawn"])
        assert torch.equal(one["clean"], other["clean"])
        assert torch.equal(one["perturbed"], other["perturbed"])
    later = PairCollator()([pair(0, 3000), pair(1, 4000)])
    assert [one["perturbed"] for one in split_batch(later)] == [None, None]
    assert split_batch(PairCollator()([])) == []


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_the_cut_holds_every_pair_once_the_longest_first(count):
    cut = cut_by_length(PAIRS, count)
    assert len(cut) == count
    assert max(len(batch["ids"]) for batch in cut) == -(-len(PAIRS) // count)
    ids = [name for batch in cut for name in batch["ids"]]
    by_length = ["u3", "u5", "u1", "u0", "u4", "u2", "u6"]  # equal lengths in their order
    assert ids == (by_length if count > 1 else [one["id"] for one in PAIRS])
    by_id = {one["id"]: one for batch in cut for one in split_batch(batch)}
    assert all(torch.equal(by_id[one["id"]]["perturbed"], one["perturbed"]) for one in PAIRS)


def test_padding_is_counted_and_sorting_lowers_it():
    used, encoded = padding(batches_of(PAIRS, 2))
    assert used == sum(clean + perturbed for clean, perturbed in LENGTHS)
    assert encoded == 4 * 9000 + 4 * 16000 + 4 * 13000 + 2 * 3000
    assert padding(cut_by_length(PAIRS, 4)) == (used, 2 * 16000 + 4 * 13000 + 4 * 5600 + 4 * 4400)


def test_lengths_stay_on_the_cpu():
    moved = to_device(PairCollator()(PAIRS), torch.device("meta"))
    assert moved["clean"].device.type == moved["perturbed"].device.type == "meta"
    assert moved["clean_lengths"].device.type == moved["perturbed_lengths"].device.type == "cpu"


def test_perturbing_an_update_gives_what_the_workers_make():
    later = [pair(index, clean) for index, (clean, _) in enumerate(LENGTHS)]
    completed = perturb_pairs(later, SpeedPitch())
    for one, other in zip(completed, later, strict=True):
        assert torch.equal(one["perturbed"], SpeedPitch().apply(other["clean"], **other["drawn"]))
    with pytest.raises(ValueError, match="give LaserTrainer the perturbation"):
        perturb_pairs(later, None)


@pytest.fixture
def trainer(tmp_path):
    """Of a tiny encoder in float64, without dropout, for updates of 7 pairs in micro-batches of 2."""
    encoder = SpeechEncoder(make_model(layerdrop=0.0, apply_spec_augment=False, **NO_DROPOUT))
    encoder.freeze_except(2)
    args = LaserTrainingArguments(
        output_dir=str(tmp_path), pairs_per_update=7, per_device_train_batch_size=2, use_cpu=True, report_to="none"
    )
    return LaserTrainer(AlignmentModel(encoder, 8), args, LaserLoss(backend="reference"), train_dataset=PAIRS)


def gradients(trainer: LaserTrainer, micro_batches: list[dict]) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    for inputs in micro_batches:
        inputs = {key: value.double() if key in ("clean", "perturbed") else value for key, value in inputs.items()}
        trainer.compute_loss(trainer.model, inputs, num_items_in_batch=len(PAIRS)).backward()
    return {name: value.grad.clone() for name, value in trainer.model.named_parameters() if value.grad is not None}


def test_gradients_of_sorted_micro_batches_are_those_of_the_whole_update(trainer, monkeypatch):
    head = trainer.model.double().train().head
    # The head itself always gives float32.
    monkeypatch.setattr(head, "forward", lambda frames: nn.functional.normalize(head.projection(frames), dim=-1))
    expected = gradients(trainer, batches_of(PAIRS, len(PAIRS)))
    sorted_batches, pairs = trainer.get_batch_samples(iter(batches_of(PAIRS, 2)), 4, torch.device("cpu"))
    assert [len(batch["ids"]) for batch in sorted_batches] == [1, 2, 2, 2]
    assert sorted_batches[0]["ids"] == ["u3"]
    assert pairs == len(PAIRS)
    found = gradients(trainer, sorted_batches)
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    assert largest > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12 * float(largest), msg=name)


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
    trainer.compute_loss(model, PairCollator()(PAIRS[:2]))
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


def test_a_perturbation_without_a_batched_form_is_refused_at_once(trainer, tmp_path):
    class Reverse(Perturbation):
        def draw(self, rng):
            return {}

        def apply(self, waveform):
            return waveform.flip(0)

    args = LaserTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(NotImplementedError, match="Reverse has no batched form"):
        LaserTrainer(trainer.model, args, trainer.objective, train_dataset=PAIRS, perturbation=Reverse())
