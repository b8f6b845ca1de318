"""The map of words: which tokens it takes, and its principal components against an eigendecomposition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from laser_hf.plots import choose_words, plot_words, principal_components
from laser_hf.plots import word_map as word_map_module
from laser_hf.superb.probing.alignments import Token

from .conftest import assert_drawn


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
    torch.testing.assert_close(principal_components(vectors[shuffled]).points, points[shuffled])
    assert points.dtype == torch.float64


def test_vectors_without_components_are_refused():
    constant = principal_components(torch.ones(4, 3))
    assert constant.points.abs().max() == 0
    assert constant.explained.tolist() == [0, 0]
    for wrong in (torch.zeros(1, 8), torch.zeros(8, 1), torch.zeros(8)):
        with pytest.raises(ValueError, match="2 components need vectors"):
            principal_components(wrong)
    with pytest.raises(ValueError, match="not all finite"):
        principal_components(torch.full((3, 3), float("inf")))


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
def test_words_of_most_speakers_come_first(seed):
    tokens = random_tokens(seed)
    found = choose_words(tokens, words=5, speakers=4, per_speaker=2)
    assert found == choose_words(tokens[::-1], words=5, speakers=4, per_speaker=2) == sorted(found)
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


def test_words_of_one_speaker_are_not_shown():
    lone = [Token(f"u{n}", 0.0, 1.0, "lone", "s1") for n in range(9)]
    shared = [Token("u1", 2.0, 1.0, "shared", "s1"), Token("v1", 0.0, 1.0, "shared", "s2")]
    assert choose_words(lone + shared) == sorted(shared)
    assert choose_words(lone) == choose_words([]) == []
    # The third speaker says "rare" with the first one only, and is one too many.
    more = [Token("v1", 1.0, 1.0, "shared", "s2"), Token("u1", 4.0, 1.0, "rare", "s1")]
    more.append(Token("w1", 0.0, 1.0, "rare", "s3"))
    assert {token.label for token in choose_words(shared + more)} == {"shared", "rare"}
    assert {token.label for token in choose_words(shared + more, speakers=2)} == {"shared"}


def test_colours_are_words_and_markers_speakers(tmp_path, monkeypatch):
    seen = []
    original = word_map_module.save
    monkeypatch.setattr(word_map_module, "save", lambda figure, *rest: (seen.append(figure), original(figure, *rest)))
    tokens = [Token(f"{s}-{w}", 0.0, 1.0, w, s) for s in ("s1", "s2", "s3") for w in ("river", "winter")]
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(6, 4, generator=generator) for name in ("before", "after")}
    plot_words(vectors, tokens, tmp_path / "words.png", "title")
    assert_drawn(tmp_path / "words.png")
    for axis, matrix in zip(seen[0].axes, vectors.values(), strict=True):
        points, explained = principal_components(matrix)
        drawn = np.array([line.get_xydata()[0] for line in axis.lines])
        np.testing.assert_allclose(drawn, points.numpy())
        assert f"({100 * explained[0]:.0f} % of the variance)" in axis.get_xlabel()
        colours = [to_hex(line.get_color()) for line in axis.lines]
        markers = [line.get_marker() for line in axis.lines]
        assert len(set(colours)) == 2
        assert len(set(markers)) == 3
        assert colours[::2] == colours[:1] * 3
        assert markers[0] == markers[1] != markers[2]
    (legend,) = seen[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["river", "winter", "speaker s1", "speaker s2", "speaker s3"]


def test_too_many_words_or_vectors_are_refused(tmp_path):
    many = [Token(f"u{n}", 0.0, 1.0, f"word {n}", "s1") for n in range(9)]
    with pytest.raises(ValueError, match="too few for 9 words of 1 speakers"):
        plot_words({"a": torch.randn(9, 3)}, many, tmp_path / "words.png")
    with pytest.raises(ValueError, match="a: 4 vectors for 5 tokens"):
        plot_words({"a": torch.randn(4, 3)}, many[:5], tmp_path / "words.png")
