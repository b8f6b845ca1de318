"""Spin's loss against plain numpy, autograd checks, and two processes against one."""

from __future__ import annotations

import datetime
import itertools
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from laser_hf.objectives import SpinLoss, sinkhorn, spin


def unit_frames(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=dtype, generator=generator), dim=-1)


def make_loss(dim: int = 6, codes: int = 5, dtype=torch.float64, **parameters) -> SpinLoss:
    torch.manual_seed(7)
    loss = SpinLoss(dim, codes=codes, **parameters).to(dtype)
    loss.prepare_update()
    return loss


def numpy_sinkhorn(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    q = np.exp(scores / epsilon)
    for _ in range(iterations):
        q = q / q.sum(axis=0, keepdims=True)
        q = q / q.sum(axis=1, keepdims=True)
    return q


def by_hand(x, lengths, y, codebook, temperature, epsilon, iterations) -> dict[str, list[float]]:
    """Terms of each pair: valid frames one after the other, targets over all of them, loops over pairs and frames."""
    x, y, codebook = x.numpy(), y.numpy(), codebook.numpy()
    scores = [np.concatenate([view[i, :m] @ codebook.T for i, m in enumerate(lengths)]) for view in (x, y)]
    targets = [numpy_sinkhorn(part, epsilon, iterations) for part in scores]
    terms = {"swapped_x": [], "swapped_y": []}
    for name, own, others in (("swapped_x", scores[0], targets[1]), ("swapped_y", scores[1], targets[0])):
        frame = 0
        for m in lengths:
            total = 0.0
            for _ in range(m):
                logits = own[frame] / temperature
                log_p = logits - math.log(sum(math.exp(value) for value in logits))
                total -= sum(q * p for q, p in zip(others[frame], log_p, strict=True))
                frame += 1
            terms[name].append(total)
    terms["total"] = [(a + b) / 2 for a, b in zip(terms["swapped_x"], terms["swapped_y"], strict=True)]
    share = np.concatenate(targets).mean(axis=0)
    nearest = np.bincount(np.concatenate(scores).argmax(axis=1), minlength=len(codebook)) / (2 * sum(lengths))
    for name, p in (("perplexity", share), ("code_perplexity", nearest)):
        terms[name] = [m * math.exp(-sum(value * math.log(value) for value in p if value > 0)) for m in lengths]
    return terms


LENGTHS = (9, 4, 1)


@pytest.mark.parametrize(("temperature", "epsilon", "iterations"), [(0.1, 0.02, 3), (0.5, 0.1, 1), (1.0, 0.05, 6)])
def test_values_by_hand(temperature, epsilon, iterations):
    x, y = unit_frames(3, 9, 6), unit_frames(3, 9, 6, seed=1)
    loss = make_loss(temperature=temperature, epsilon=epsilon, iterations=iterations)
    terms = loss(x, torch.tensor(LENGTHS), y, torch.tensor(LENGTHS))
    expected = by_hand(x, LENGTHS, y, loss.codebook.weight.detach(), temperature, epsilon, iterations)
    assert tuple(terms) == loss.term_names
    for name, values in expected.items():
        assert terms[name].tolist() == pytest.approx(values, rel=1e-10), name


def test_two_frames_and_two_codes_by_hand():
    """Each frame is one of the two codes; Sinkhorn with so small an epsilon makes the targets one-hot."""
    loss = make_loss(dim=2, codes=2)
    with torch.no_grad():
        loss.codebook.weight.copy_(torch.eye(2))
    x = torch.eye(2, dtype=torch.float64)[None]
    aligned, swapped = loss(x, None, x, None), loss(x, None, x.flip(1), None)
    right, wrong = math.log(1 + math.exp(-10)), math.log(1 + math.exp(10))
    assert aligned["total"].item() == pytest.approx(2 * right, rel=1e-9)
    assert swapped["total"].item() == pytest.approx(2 * wrong, rel=1e-9)
    assert aligned["perplexity"].item() == pytest.approx(2 * 2)


def fix_targets(monkeypatch, targets) -> None:
    """Sinkhorn that hands out given targets, for x and y in turn."""
    in_turn = itertools.cycle(targets)

    def fixed(*_, used):
        targets = next(in_turn)
        return targets.new_zeros(len(used), targets.shape[1]).masked_scatter(used[:, None], targets)

    monkeypatch.setattr(spin, "sinkhorn", fixed)


def targets_of(loss, x, y, lengths):
    valid = torch.arange(x.shape[1]) < lengths[:, None]
    return [sinkhorn(view[valid] @ loss.codebook.weight.T, loss.epsilon, loss.iterations).detach() for view in (x, y)]


def test_gradcheck_with_fixed_targets(monkeypatch):
    loss, lengths = make_loss(dim=4, codes=3), torch.tensor([4, 2])
    x, y = unit_frames(2, 4, 4).requires_grad_(), unit_frames(2, 4, 4, seed=1).requires_grad_()
    fix_targets(monkeypatch, targets_of(loss, x, y, lengths))

    def total(a, b, codebook):
        return torch.func.functional_call(loss, {"codebook.weight": codebook}, (a, lengths, b, lengths))["total"]

    assert torch.autograd.gradcheck(total, (x, y, loss.codebook.weight.detach().clone().requires_grad_()))


def test_no_gradient_flows_through_the_targets(monkeypatch):
    loss, lengths = make_loss(), torch.tensor([9, 4, 1])
    x, y = unit_frames(3, 9, 6).requires_grad_(), unit_frames(3, 9, 6, seed=1).requires_grad_()
    leaves = (x, y, loss.codebook.weight)
    own = torch.autograd.grad(loss(x, lengths, y, lengths)["total"].sum(), leaves)
    fix_targets(monkeypatch, targets_of(loss, x, y, lengths))
    for gradient, fixed in zip(
        own, torch.autograd.grad(loss(x, lengths, y, lengths)["total"].sum(), leaves), strict=True
    ):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, fixed)


@pytest.mark.parametrize("filler", [0.0, 3.0, float("nan")])
def test_padding_takes_no_part(filler):
    """One pair in a padded batch of its own, and two pairs as one long pair of all their frames."""
    loss = make_loss()
    x, y = unit_frames(2, 9, 6), unit_frames(2, 9, 6, seed=1)
    lengths = torch.tensor([5, 3])
    x[0, 5:], x[1, 3:], y[0, 5:], y[1, 3:] = filler, filler, filler, filler
    x.requires_grad_()
    padded = loss(x, lengths, y, lengths)
    padded["total"].sum().backward()
    joined = [torch.cat((view[0, :5], view[1, :3]))[None].detach() for view in (x, y)]
    joined[0].requires_grad_()
    together = loss(joined[0], None, joined[1], None)
    together["total"].sum().backward()
    for name in loss.term_names:
        torch.testing.assert_close(padded[name].sum(), together[name][0])
    torch.testing.assert_close(torch.cat((x.grad[0, :5], x.grad[1, :3])), joined[0].grad[0])
    assert (x.grad[0, 5:] == 0).all()
    assert (x.grad[1, 3:] == 0).all()
    alone = loss(x[:1].detach(), lengths[:1], y[:1], lengths[:1])
    trimmed = loss(x[:1, :5].detach(), None, y[:1, :5], None)
    for name in loss.term_names:
        torch.testing.assert_close(alone[name], trimmed[name])


def test_swapping_the_views_swaps_the_directions():
    loss, x, y = make_loss(), unit_frames(2, 9, 6), unit_frames(2, 9, 6, seed=1)
    terms, other = loss(x, None, y, None), loss(y, None, x, None)
    torch.testing.assert_close(terms["total"], other["total"])
    torch.testing.assert_close(terms["swapped_x"], other["swapped_y"])
    assert not torch.allclose(terms["swapped_x"], terms["swapped_y"])


def test_collapse_is_no_minimum_and_shows_in_the_code_perplexity():
    """Frames all alike cost at least log K each; frames on their codes nearly nothing."""
    loss = make_loss(dim=8, codes=8)
    with torch.no_grad():
        loss.codebook.weight.copy_(torch.eye(8))
    spread = torch.eye(8, dtype=torch.float64).repeat(5, 1)[None]
    alike = unit_frames(1, 1, 8).expand(1, 40, 8)
    collapsed, good = loss(alike, None, alike, None), loss(spread, None, spread, None)
    assert collapsed["total"].item() / 40 >= math.log(8)
    assert good["total"].item() / 40 < 1e-3
    assert collapsed["code_perplexity"].item() / 40 == pytest.approx(1)
    assert good["code_perplexity"].item() / 40 == pytest.approx(8)
    assert good["perplexity"].item() / 40 == pytest.approx(8)


def test_the_codebook_is_normalised_before_updates_and_in_evaluation():
    torch.manual_seed(0)
    loss = SpinLoss(6, codes=5)
    ones = torch.ones(5)
    torch.testing.assert_close(loss.codebook.weight.norm(dim=1), ones)
    x, y = unit_frames(1, 9, 6, dtype=torch.float32), unit_frames(1, 9, 6, seed=1, dtype=torch.float32)
    before = loss(x, None, y, None)["total"]
    weight = loss.codebook.weight
    with torch.no_grad():
        weight.mul_(torch.arange(2.0, 7.0)[:, None])
    stretched = weight.detach().clone()
    assert not torch.allclose(loss(x, None, y, None)["total"], before)
    torch.testing.assert_close(loss.eval()(x, None, y, None)["total"], before)
    torch.testing.assert_close(weight.detach(), stretched, rtol=0, atol=0)
    loss.train().prepare_update()
    assert loss.codebook.weight is weight
    assert weight.requires_grad
    torch.testing.assert_close(weight.detach().norm(dim=1), ones)
    torch.testing.assert_close(loss(x, None, y, None)["total"], before)


def test_no_rows():
    loss, nothing = make_loss(), torch.zeros(0, 4, 6, dtype=torch.float64, requires_grad=True)
    terms = loss(nothing, torch.zeros(0, dtype=torch.int64), nothing, torch.zeros(0, dtype=torch.int64))
    assert {name: tuple(value.shape) for name, value in terms.items()} == dict.fromkeys(loss.term_names, (0,))
    terms["total"].sum().backward()
    assert (loss.codebook.weight.grad == 0).all()


def test_the_codebook_has_the_dimension_of_the_frames():
    loss, x = make_loss(), unit_frames(2, 9, 6)
    with pytest.raises(ValueError, match=r"batch, frames, 6\), the dimension of the codebook, got \(2, 9, 4\)"):
        loss(x[..., :4], None, x[..., :4], None)
    assert SpinLoss.build(4, codes=3).codebook.weight.shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"codes": 1}, "codes must be at least 2"),
        ({"temperature": 0.0}, "temperature"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpinLoss(**arguments)


# Pairs of each of two processes: unequal shares, and a process without any.
SHARES = {"unequal": (2, 1), "none": (0, 3), "nobody": (0, 0)}


def run_shares(share: slice) -> dict:
    """Loss terms of these pairs, and gradients of their sum."""
    loss = make_loss()
    x, y = (unit_frames(3, 9, 6, seed=seed)[share].requires_grad_() for seed in (0, 1))
    lengths = torch.tensor(LENGTHS)[share]
    terms = loss(x, lengths, y, lengths)
    terms["total"].sum().backward()
    return {
        "terms": {name: value.detach() for name, value in terms.items()},
        "x": x.grad,
        "y": y.grad,
        "codebook": loss.codebook.weight.grad,
    }


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", patience, world_size=2, rank=rank)
    results = {}
    for name, counts in SHARES.items():
        first = sum(counts[:rank])
        results[name] = run_shares(slice(first, first + counts[rank]))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.start_processes(process, (str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", SHARES)
def test_two_processes_equal_one(of_two_processes, name):
    parts, whole = [results[name] for results in of_two_processes], run_shares(slice(0, sum(SHARES[name])))
    assert [len(part["x"]) for part in parts] == list(SHARES[name])
    for term, value in whole["terms"].items():
        torch.testing.assert_close(torch.cat([part["terms"][term] for part in parts]), value)
    for view in "xy":
        torch.testing.assert_close(torch.cat([part[view] for part in parts]), whole[view])
    torch.testing.assert_close(sum(part["codebook"] for part in parts), whole["codebook"])


def test_without_the_other_process_the_targets_are_others(of_two_processes):
    """The test above needs the exchange between the processes."""
    alone = run_shares(slice(0, 2))["terms"]["total"]
    assert not torch.allclose(alone, of_two_processes[0]["unequal"]["terms"]["total"], rtol=1e-3)
