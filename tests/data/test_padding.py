"""Padding, batches without a usable pair, and the account of what was skipped."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from laser_hf.data import SkipLog, pad_pairs

# Lengths of the two views of each pair; None: the pair was skipped.
PAIRS = st.lists(st.none() | st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=8)


def pair(name: str, clean: int, perturbed: int) -> dict:
    """A pair of ramps, of these lengths."""
    views = {"clean": 1.0 + torch.arange(clean), "perturbed": -1.0 - torch.arange(perturbed)}
    return {"id": name, **views, "drawn": {"speed": clean / perturbed, "pitch": 2}, "skip": ""}


def skipped(name: str, reason: str = "silent: 1.00 s of digital silence") -> dict:
    """A pair that could not be made."""
    return {"id": name, "clean": None, "perturbed": None, "drawn": {}, "skip": reason}


@given(PAIRS)
def test_padding_and_lengths(lengths):
    pairs = [skipped(str(i)) if one is None else pair(str(i), *one) for i, one in enumerate(lengths)]
    kept = [one for one in pairs if not one["skip"]]
    batch = pad_pairs(pairs)
    assert batch["ids"] == [one["id"] for one in kept]
    assert batch["drawn"] == [one["drawn"] for one in kept]
    assert batch["skipped"] == [(one["id"], one["skip"]) for one in pairs if one["skip"]]
    for view in ("clean", "perturbed"):
        rows, sizes = batch[view], batch[f"{view}_lengths"]
        assert (rows.dtype, sizes.dtype) == (torch.float32, torch.int64)
        assert rows.shape == (len(kept), max((len(one[view]) for one in kept), default=0))
        assert sizes.tolist() == [len(one[view]) for one in kept]
        for row, size, original in zip(rows, sizes, kept, strict=True):
            assert torch.equal(row[:size], original[view])
            assert torch.count_nonzero(row[size:]) == 0


@pytest.mark.parametrize("pairs", [[], [skipped("a"), skipped("b")]])
def test_a_batch_with_nothing_usable(pairs):
    batch = pad_pairs(pairs)
    assert batch["clean"].shape == batch["perturbed"].shape == (0, 0)
    assert batch["clean_lengths"].shape == batch["perturbed_lengths"].shape == (0,)
    assert len(batch["skipped"]) == len(pairs)


def test_views_that_the_device_makes_are_none():
    batch = pad_pairs([pair("a", 5, 4) | {"perturbed": None}, skipped("b")])
    assert batch["perturbed"] is batch["perturbed_lengths"] is None
    assert batch["clean"].shape == (1, 5)


def test_a_batch_survives_dataloader_workers_and_the_way_to_a_device():
    pairs = [pair("a", 5, 4), skipped("b"), pair("c", 2, 7)]
    (batch,) = DataLoader(pairs, batch_size=3, num_workers=1, collate_fn=pad_pairs)
    moved = send_to_device(batch, torch.device("cpu"))
    expected = pad_pairs(pairs)
    assert moved.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(moved[name], value) if isinstance(value, torch.Tensor) else moved[name] == value


def test_skip_log_names_each_utterance_once(caplog):
    log = SkipLog()
    assert log.summary() == {"utterances": 0, "times": 0, "by_kind": {}}
    with caplog.at_level(logging.WARNING, logger="laser_hf.data"):
        log.update([("a", "silent: 1 s"), ("b", "nan: 3 of 9 samples")])
        log.update([("a", "silent: 1 s")])
        log.update([])
    assert [record.getMessage() for record in caplog.records] == [
        "skipped utterance a: silent: 1 s",
        "skipped utterance b: nan: 3 of 9 samples",
    ]
    assert log.summary() == {"utterances": 2, "times": 3, "by_kind": {"nan": 1, "silent": 1}}
    together = SkipLog()
    for state in (json.loads(json.dumps(log.state_dict())), {"kinds": {"c": "nan"}, "times": 2}):
        together.load_state_dict(state)
    assert together.summary() == {"utterances": 3, "times": 5, "by_kind": {"nan": 2, "silent": 1}}
