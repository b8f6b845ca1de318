"""Several heads on one encoding: each is what it is alone, to the same bits."""

from __future__ import annotations

import argparse
from itertools import product

import pytest
import torch
from transformers import set_seed

from laser_hf.superb.ctc.run import Command
from laser_hf.superb.ctc.tasks import Asr
from laser_hf.superb.ctc.training import CtcTrainer
from laser_hf.superb.features import EncoderFeatures

from .conftest import command, run

SEEDS, RATES = (1337, 1338), (3e-3, 3e-2)


def trained(words, keys, spoil=None):
    """Heads trained together, by key, and how often a batch was encoded."""
    parser = argparse.ArgumentParser()
    Asr.add_arguments(parser)
    made = Command(Asr, parser.parse_args(words))
    heads = {}
    for seed, rate in keys:
        set_seed(seed)
        heads[seed, rate] = Asr.build_head(made.recipe, made.features.layers, made.features.dim)
        if (seed, rate) == spoil:
            torch.nn.init.constant_(heads[seed, rate].head.output.weight, float("nan"))
    trainer = CtcTrainer(made, heads)
    trainer.train()
    return dict(zip(keys, trainer.best, strict=True)), trainer


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["yes", "no"])
def test_each_head_is_what_it_is_alone(cache, tiny_encoder, corpus, tmp_path, monkeypatch):
    encoded = []
    real = EncoderFeatures.states

    def states(self, *arguments, **keywords):
        encoded.append(0)
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(EncoderFeatures, "states", states)
    words = ["--cache_features", cache, "--max_steps", "4"]

    def at(folder):
        return command("asr", tiny_encoder, corpus, tmp_path / folder, *words)

    keys = list(product(SEEDS, RATES))
    together, trainer = trained(at("all"), keys)
    once = len(encoded)
    for number, key in enumerate(keys):
        encoded.clear()
        alone, other = trained(at(f"alone-{number}"), [key])
        assert len(encoded) == once  # four heads cost what one does
        assert alone[key]["step"] == together[key]["step"]
        assert alone[key]["value"] == together[key]["value"]
        for name, weight in other.heads[0].state_dict().items():
            assert torch.equal(weight, trainer.heads[number].state_dict()[name]), name
        losses = [
            [entry["loss"] for entry in log if "loss" in entry] for log in (trainer.history(number), other.history(0))
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    weights = [head.state_dict()["head.output.weight"] for head in trainer.heads]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


@pytest.mark.slow
def test_a_head_that_is_not_a_number_does_not_touch_the_others(tiny_encoder, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(CtcTrainer, "evaluate", lambda self, *_, **__: {})
    keys = [(1337, 3e-3), (1338, 3e-3)]
    _, together = trained(command("asr", tiny_encoder, corpus, tmp_path / "a"), keys, spoil=keys[0])
    _, alone = trained(command("asr", tiny_encoder, corpus, tmp_path / "b"), keys[1:])
    assert [together.left_out(number) for number in range(2)] == [8, 0]
    for name, weight in alone.heads[0].state_dict().items():
        assert torch.equal(weight, together.heads[1].state_dict()[name]), name


@pytest.mark.slow
def test_the_learning_rate_with_the_lowest_error_on_dev_counts(tiny_encoder, corpus, tmp_path):
    record = run("asr", tiny_encoder, corpus, tmp_path, "--learning_rate", "1e-6", "3e-2", "--max_steps", "6")
    dev = {rate: entry["dev_cer"] for rate, entry in record["learning_rates"].items()}
    assert list(dev) == ["1e-06", "0.03"]
    best = min(dev, key=dev.get)
    assert record["recipe"]["learning_rate"] == float(best)
    assert record["changed_from_superb"]["learning_rate"]["here"] == float(best)
    assert {path.name for path in tmp_path.glob("rate-*")} == {"rate-1e-06-seed-1337", "rate-0.03-seed-1337"}
    assert next(metric["value"] for metric in record["metrics"] if metric["split"] == "dev") == dev[best]
    assert "standard_deviation" not in record
