"""What all objectives share: the descriptions, the checks, and that padding takes no part."""

from __future__ import annotations

import doctest
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_hf.errors import LaserError
from laser_hf.objectives import (
    OBJECTIVES,
    LaserLoss,
    Objective,
    Option,
    ScoreLoss,
    SpinLoss,
    find_objective,
    frames_in_use,
)

every_objective = pytest.mark.parametrize("name", sorted(OBJECTIVES))
DIM = 6


def build(name: str, **values) -> Objective:
    torch.manual_seed(7)
    return OBJECTIVES[name].build(DIM, **values).double()


def unit_frames(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=dtype, generator=generator), dim=-1)


class Huber(Objective):
    """An objective of somebody else's: no constructor, one option, `terms`."""

    title = "Huber"
    options = (Option("delta", 1.0, "where the square ends", above=0),)
    equal_lengths = True

    def terms(self, x, m, y, n):
        if self.delta == 99.0:
            return {"total": x.mean()}
        return {"total": torch.nn.functional.huber_loss(x, y, reduction="none", delta=self.delta).sum(dim=(1, 2))}


# ---- descriptions ----


@every_objective
def test_every_objective_describes_itself(name):
    objective = OBJECTIVES[name]
    assert objective.name == name
    assert objective.title
    assert objective.summary.endswith(".")
    assert "https://" in objective.paper
    assert objective.term_names[0] == "total"
    assert all(objective.term_labels.values())
    assert all(option.help for option in objective.options)
    option = objective.anti_collapse.removeprefix("--")
    assert not option or option in {option.dest for option in objective.options}


@every_objective
def test_bibtex_entries_have_fields_of_their_own_lines(name):
    lines = OBJECTIVES[name].bibtex.splitlines()
    assert re.fullmatch(r"@\w+\{\w+,", lines[0])
    assert lines[-1] == "}"
    fields = re.findall(r"^  (\w+) +?= +?\"[^\"]+\",?$", "\n".join(lines), re.MULTILINE)
    assert {"title", "author"} < set(fields)


def test_an_option_of_several_objectives_is_the_same_in_all():
    """One switch of the command line serves them all."""
    seen: dict[str, Option] = {}
    for objective in OBJECTIVES.values():
        for option in objective.options:
            assert seen.setdefault(option.dest, option) == option


def test_what_the_trainer_reads():
    assert {name for name, objective in OBJECTIVES.items() if objective.needs_twin} == {"score"}
    assert {name for name, objective in OBJECTIVES.items() if objective.equal_lengths} == {"spin", "mse_idm"}
    assert {name for name, objective in OBJECTIVES.items() if objective.unit == "frames"} == {"spin"}
    assert LaserLoss.anti_collapse == "--alpha"
    assert ScoreLoss.build(DIM, twin_dropout="false").twin_dropout is False
    assert LaserLoss().prepare_update() is None


def test_objectives_are_found_by_name_and_by_import_path():
    assert find_objective("laser") is LaserLoss
    assert find_objective(f"{__name__}:Huber") is Huber
    with pytest.raises(LaserError, match="unknown objective 'laserr'; shipped are laser, mse_idm, score"):
        find_objective("laserr")


# ---- options ----


@every_objective
def test_options_have_their_defaults_and_become_attributes(name):
    objective = build(name)
    assert {option.name: getattr(objective, option.name) for option in objective.options} == objective.checked({})
    assert all(f"{option.name}={getattr(objective, option.name)!r}" in repr(objective) for option in objective.options)


@every_objective
def test_values_out_of_range_are_refused(name):
    for option in OBJECTIVES[name].options:
        bad = "cosine" if option.choices else -1
        with pytest.raises(LaserError, match=option.dest):
            build(name, **{option.dest: bad})
    with pytest.raises(LaserError, match=f"{name} has no option speed"):
        build(name, speed=1.0)


def test_texts_become_numbers():
    loss = LaserLoss.build(DIM, alpha="0.15", sigma="2", reference_frames="30")
    assert (loss.alpha, loss.sigma, loss.reference_frames) == (0.15, 2, 30)


# ---- the template ----


def test_the_example_of_the_docstring():
    names = {"Objective": Objective, "Option": Option, "frames_in_use": frames_in_use, "torch": torch}
    example = doctest.DocTestParser().get_doctest(Objective.__doc__, names, "example", None, None)
    assert doctest.DocTestRunner().run(example, clear_globs=False).failed == 0
    loss, x, y = example.globs["Huber"].build(DIM, delta="0.5"), unit_frames(2, 5, DIM), unit_frames(2, 5, DIM, seed=1)
    expected = [
        torch.nn.functional.huber_loss(x[i, :m], y[i, :m], reduction="sum", delta=0.5) for i, m in ((0, 5), (1, 2))
    ]
    lengths = torch.tensor([5, 2])
    torch.testing.assert_close(loss(x, lengths, y, lengths)["total"], torch.stack(expected))


def test_an_objective_of_somebody_else_needs_terms_alone():
    loss, x = Huber.build(DIM, delta="0.5"), unit_frames(2, 5, DIM)
    assert loss.delta == 0.5
    assert loss(x, None, x, None)["total"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="Huber needs perturbations that keep the duration"):
        loss(x, None, x[:, :4], None)
    with pytest.raises(ValueError, match=r"Huber.terms must return terms of shapes .*'total': \(2,\).*, got .*\(\)"):
        Huber(delta=99)(x, None, x, None)


def test_a_wrong_description_is_refused_where_it_stands():
    with pytest.raises(TypeError, match="term_labels must begin with 'total'"):
        type("Wrong", (Objective,), {"term_labels": {"loss": "loss"}})
    with pytest.raises(TypeError, match="unit"):
        type("Wrong", (Objective,), {"unit": "seconds"})


@every_objective
def test_float32_under_autocast_and_float64_as_it_is(name):
    loss = build(name).float()
    x, y = (unit_frames(2, 9, DIM, seed=seed, dtype=torch.float32) for seed in (0, 1))
    plain = loss(x, None, y, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(x, None, y, None)
        from_bf16 = loss(x.bfloat16(), None, y.bfloat16(), None)
    for term, value in plain.items():
        torch.testing.assert_close(cast[term], value, rtol=0, atol=0)
        assert from_bf16[term].dtype == torch.float32
    assert {value.dtype for value in loss.double()(x.double(), None, y.double(), None).values()} == {torch.float64}


@every_objective
def test_no_rows(name):
    loss, nothing = build(name), torch.zeros(0, 4, DIM, dtype=torch.float64, requires_grad=True)
    terms = loss(nothing, torch.zeros(0, dtype=torch.int64), nothing, torch.zeros(0, dtype=torch.int64))
    assert {term: tuple(value.shape) for term, value in terms.items()} == dict.fromkeys(loss.term_names, (0,))
    terms["total"].sum().backward()


@every_objective
def test_wrong_shapes_and_lengths_are_refused(name):
    loss, x = build(name), unit_frames(2, 5, DIM)
    for bad in (x[0], x[:1], x[..., :3]):
        with pytest.raises(ValueError, match="must have shape"):
            loss(x, None, bad, None)
    with pytest.raises(ValueError, match="lengths_y must lie between 1 and 5, got"):
        loss(x, torch.tensor([5, 5]), x, torch.tensor([5, 6]))
    with pytest.raises(ValueError, match=r"lengths_x must have shape \(2,\)"):
        loss(x, torch.tensor([5]), x, None)


@every_objective
def test_views_of_unequal_length_are_refused_where_they_must_be_equal(name):
    loss, x = build(name), unit_frames(2, 9, DIM)
    calls = [
        (x, None, x[:, :8], None),
        (x, torch.tensor([9, 5]), x, torch.tensor([9, 6])),
        (x, None, x, torch.tensor([9, 6])),
    ]
    for arguments in calls:
        if not loss.equal_lengths:
            assert loss(*arguments)["total"].shape == (2,)
            continue
        with pytest.raises(ValueError, match=r"equally many frames, got \[9, [59]\] of 9 and .* keep the duration"):
            loss(*arguments)


# ---- padding ----

lengths_of_pairs = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)


@every_objective
@settings(max_examples=15, deadline=None)
@given(pairs=lengths_of_pairs, extra=st.integers(0, 3), filler=st.sampled_from([0.0, 3.0, float("nan"), float("inf")]))
def test_padding_changes_neither_value_nor_gradient(name, pairs, extra, filler):
    """Whatever lies behind the lengths, and however much of it."""
    loss = build(name)
    if loss.equal_lengths:
        pairs = [(m, m) for m, _ in pairs]
    m, n = (torch.tensor(lengths) for lengths in zip(*pairs, strict=True))
    views = [unit_frames(len(pairs), int(lengths.max()), DIM, seed=i) for i, lengths in enumerate((m, n))]

    def run(behind: int, value: float):
        inputs = []
        for view, lengths in zip(views, (m, n), strict=True):
            view = torch.nn.functional.pad(view, (0, 0, 0, behind))
            padding = torch.arange(view.shape[1]) >= lengths[:, None]
            inputs.append(view.masked_fill(padding[..., None], value).requires_grad_())
        terms = loss(inputs[0], m, inputs[1], n)
        gradients = torch.autograd.grad(terms["total"].sum(), inputs)
        return terms, gradients

    tight, padded = run(0, 0.0), run(extra, filler)
    for term, value in tight[0].items():
        torch.testing.assert_close(padded[0][term], value)
    for gradient, expected, lengths in zip(padded[1], tight[1], (m, n), strict=True):
        torch.testing.assert_close(gradient[:, : expected.shape[1]], expected)
        assert (gradient[torch.arange(gradient.shape[1]) >= lengths[:, None]] == 0).all()


@pytest.mark.parametrize("name", sorted(name for name in OBJECTIVES if OBJECTIVES[name] is not SpinLoss))
@settings(max_examples=15, deadline=None)
@given(pairs=lengths_of_pairs)
def test_a_pair_has_the_same_terms_alone_and_in_a_batch(name, pairs):
    """Not so Spin's, whose targets are assigned over the whole batch."""
    loss = build(name)
    if loss.equal_lengths:
        pairs = [(m, m) for m, _ in pairs]
    x, y = unit_frames(len(pairs), 7, DIM), unit_frames(len(pairs), 7, DIM, seed=1)
    together = loss(x, torch.tensor([m for m, _ in pairs]), y, torch.tensor([n for _, n in pairs]))
    for i, (m, n) in enumerate(pairs):
        alone = loss(x[i : i + 1, :m], None, y[i : i + 1, :n], None)
        for term, value in alone.items():
            torch.testing.assert_close(together[term][i], value[0])
