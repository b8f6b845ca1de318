"""Panels of frames and words: cosines, silhouettes against loops, principal components by eigenvectors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from laser_hf.plots import self_similarity_figure, silhouette, speech, words_figure
from laser_hf.plots.panels import principal_components
from laser_hf.plots.speech import choose_words
from laser_hf.superb.discrimination import Token


def random_frames(count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def panels_of(figure):
    return [axis for axis in figure.axes if axis.images]


def cosines(frames):
    return torch.nn.functional.cosine_similarity(frames[:, None].double(), frames[None].double(), dim=-1)


def test_self_similarity_is_cosines_and_their_change():
    words = [
        Token("u", 0.1, 0.3, "river", "s"),
        Token("u", 0.5, 0.2, "winter", "s"),
        Token("u", 0.9, 5.0, "too late", "s"),
    ]
    frames = {"before": random_frames(), "after": 100 * random_frames(seed=1)}
    panels = panels_of(self_similarity_figure(frames, 0.02, words))
    assert [axis.get_title() for axis in panels] == ["before", "after", "change"]
    before, after, change = (torch.as_tensor(axis.images[0].get_array().data) for axis in panels)
    torch.testing.assert_close(before, cosines(frames["before"]))
    torch.testing.assert_close(after, cosines(frames["after"]))
    torch.testing.assert_close(change, after - before)
    limits = [axis.images[0].get_clim() for axis in panels]
    assert limits[:2] == [(min(float(before.min()), float(after.min())), 1.0)] * 2
    assert limits[2] == (-change.abs().max(), change.abs().max())  # the colour map's middle is no change
    for axis in panels:
        assert axis.get_xlim() == axis.get_ylim() == pytest.approx((0, 0.8))
        (names,) = axis.child_axes
        assert [label.get_text() for label in names.get_xticklabels()] == ["river", "winter"]
        assert names.get_xticks().tolist() == pytest.approx([0.25, 0.6])
    (alone,) = panels_of(self_similarity_figure({"alone": random_frames(500)}, 0.02))
    assert not alone.child_axes
    assert alone.get_xlim() == pytest.approx((0, 3.0))


def brute_silhouette(vectors, labels):
    """Rousseeuw 1987, Eq. 1, on cosine distances, with loops."""
    distance = 1 - cosines(vectors)
    values = []
    for i, label in enumerate(labels):
        groups = {}
        for j, other in enumerate(labels):
            if i != j:
                groups.setdefault(other, []).append(float(distance[i, j]))
        means = {name: sum(found) / len(found) for name, found in groups.items()}
        own = means.pop(label, None)
        nearest = min(means.values())
        values.append(0.0 if own is None else (nearest - own) / max(own, nearest))
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(3))
def test_silhouette_against_loops(seed):
    vectors = random_frames(23, seed)
    labels = [*"abc"[seed:] * 7, "alone", *"b" * 23][:23]
    assert silhouette(vectors, labels) == pytest.approx(brute_silhouette(vectors, labels), abs=1e-9)


def test_silhouette_of_perfect_wrong_and_single_groups():
    points = torch.eye(2).repeat_interleave(4, 0)
    assert silhouette(points, list("aaaabbbb")) == pytest.approx(1)
    assert silhouette(points, list("abababab")) < 0
    assert silhouette(torch.ones(4, 3), list("aabb")) == 0
    assert np.isnan(silhouette(points, list("aaaaaaaa")))


@pytest.mark.parametrize("shape", [(50, 6), (8, 40), (2, 2)])
def test_components_are_eigenvectors_of_the_covariance(shape):
    vectors = np.random.default_rng(shape[0]).standard_normal(shape) * np.linspace(3, 1, shape[1]) + 5
    points, explained = principal_components(torch.from_numpy(vectors))
    values, directions = np.linalg.eigh(np.cov(vectors.T, bias=True))
    values, directions = values[::-1], directions[:, ::-1]
    np.testing.assert_allclose(explained.numpy(), (values / values.sum())[:2], atol=1e-9)
    np.testing.assert_allclose(points.mean(0).numpy(), 0, atol=1e-9)
    np.testing.assert_allclose(points.var(0, unbiased=False).numpy(), values[:2], atol=1e-9)
    for column in range(1 if shape == (2, 2) else 2):  # two points have one component
        direction = directions[:, column]
        direction = direction * np.sign(direction[np.abs(direction).argmax()])
        np.testing.assert_allclose(points[:, column].numpy(), (vectors - vectors.mean(0)) @ direction, atol=1e-8)


def test_signs_do_not_depend_on_order():
    vectors = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    points, _ = principal_components(vectors)
    torch.testing.assert_close(principal_components(vectors[shuffled])[0], points[shuffled])
    assert points.dtype == torch.float64


def test_vectors_without_variance_are_one_point():
    points, explained = principal_components(torch.ones(4, 3))
    assert points.abs().max() == 0
    assert explained.tolist() == [0, 0]


def random_tokens(seed: int) -> list[Token]:
    generator = np.random.default_rng(seed)
    tokens = []
    for speaker in range(9):
        for take in range(int(generator.integers(3, 9))):
            for place in range(int(generator.integers(1, 6))):
                label = "abcdefghijkl"[min(int(generator.exponential(4)), 11)]
                tokens.append(Token(f"s{speaker}-{take}", float(place), 0.5, label, f"s{speaker}"))
    return [tokens[index] for index in generator.permutation(len(tokens))]


@pytest.mark.parametrize("seed", range(4))
def test_words_of_most_speakers_come_first(seed, monkeypatch):
    monkeypatch.setattr(speech, "MAX_WORDS", 5)
    monkeypatch.setattr(speech, "MAX_SPEAKERS", 4)
    tokens = random_tokens(seed)
    found = choose_words(tokens)
    assert found == choose_words(tokens[::-1]) == sorted(found)
    assert set(found) <= set(tokens)

    def rank(label):
        said = [token for token in tokens if token.label == label]
        return (-len({token.speaker for token in said}), -len(said), label)

    labels = sorted({token.label for token in tokens}, key=rank)
    labels = [label for label in labels if -rank(label)[0] > 1][:5]

    def total(speaker):
        return (-sum(token.speaker == speaker and token.label in labels for token in tokens), speaker)

    speakers = sorted({token.speaker for token in tokens}, key=total)[:4]
    rest = [token for token in tokens if token.label in labels and token.speaker in speakers]
    labels = [label for label in labels if len({token.speaker for token in rest if token.label == label}) > 1]
    rest = [token for token in rest if token.label in labels]
    expected = {key: min(count, 2) for key, count in Counter((one.label, one.speaker) for one in rest).items()}
    assert Counter((token.label, token.speaker) for token in found) == expected
    rich = Counter(token.utterance for token in rest)
    for label, speaker in expected:  # what is left out comes from utterances that hold fewer of the words
        own = [token for token in rest if (token.label, token.speaker) == (label, speaker)]
        kept = [rich[token.utterance] for token in own if token in found]
        left = [rich[token.utterance] for token in own if token not in found]
        assert not left or max(left) <= min(kept)


def test_words_of_one_speaker_are_not_shown(monkeypatch):
    lone = [Token(f"u{n}", 0.0, 1.0, "lone", "s1") for n in range(9)]
    shared = [Token("u1", 2.0, 1.0, "shared", "s1"), Token("v1", 0.0, 1.0, "shared", "s2")]
    assert choose_words(lone + shared) == sorted(shared)
    assert choose_words(lone) == choose_words([]) == []
    # The third speaker says "rare" with the first one only, and is one too many.
    more = [Token("v1", 1.0, 1.0, "shared", "s2"), Token("u1", 4.0, 1.0, "rare", "s1")]
    more.append(Token("w1", 0.0, 1.0, "rare", "s3"))
    assert {token.label for token in choose_words(shared + more)} == {"shared", "rare"}
    monkeypatch.setattr(speech, "MAX_SPEAKERS", 2)
    assert {token.label for token in choose_words(shared + more)} == {"shared"}


def test_colours_are_words_and_markers_speakers_in_one_plane():
    tokens = [Token(f"{s}-{w}", 0.0, 1.0, w, s) for s in ("s1", "s2", "s3") for w in ("river", "winter")]
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(6, 4, generator=generator) for name in ("before", "after")}
    figure = words_figure(vectors, tokens)
    unit = [(one.double() / one.double().norm(dim=1, keepdim=True)).numpy() for one in vectors.values()]
    centred = np.concatenate([one - one.mean(0) for one in unit])
    _, singular, basis = np.linalg.svd(centred, full_matrices=False)
    basis = basis[:2] * np.sign([row[np.abs(row).argmax()] for row in basis[:2]])[:, None]
    share = 100 * (singular**2 / (singular**2).sum())[0]
    for axis, one, matrix in zip(figure.axes, unit, vectors.values(), strict=True):
        drawn = np.array([line.get_xydata()[0] for line in axis.lines])
        np.testing.assert_allclose(drawn, (one - one.mean(0)) @ basis.T, atol=1e-9)
        assert axis.get_xlabel() == f"component 1 ({share:.0f} % of the variance)"
        labels, voices = [token.label for token in tokens], [token.speaker for token in tokens]
        scores = brute_silhouette(matrix, labels), brute_silhouette(matrix, voices)
        assert axis.get_title().endswith("silhouette of words {:.3f}, of speakers {:.3f}".format(*scores))
        colours = [to_hex(line.get_color()) for line in axis.lines]
        markers = [line.get_marker() for line in axis.lines]
        assert len(set(colours)) == 2
        assert len(set(markers)) == 3
        assert colours[::2] == colours[:1] * 3
        assert markers[0] == markers[1] != markers[2]
    before, after = figure.axes
    assert (before.get_xlim(), before.get_ylim()) == (after.get_xlim(), after.get_ylim())
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["river", "winter", "speaker s1", "speaker s2", "speaker s3"]


def test_too_many_words_or_vectors_are_refused():
    many = [Token(f"u{n}", 0.0, 1.0, f"word {n}", "s1") for n in range(9)]
    with pytest.raises(ValueError, match="too few colours or markers for 9 words of 1 speakers"):
        words_figure({"a": torch.randn(9, 3)}, many)
    with pytest.raises(ValueError, match="zip"):
        words_figure({"a": torch.randn(4, 3)}, many[:5])
