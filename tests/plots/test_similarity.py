"""Self-similarity and alignment pictures."""

from __future__ import annotations

import pytest
import torch

from laser_hf.plots import plot_alignment, plot_self_similarity, self_similarity
from laser_hf.plots import similarity as similarity_module
from laser_hf.superb.probing.alignments import Token

from .conftest import assert_drawn


def random_frames(count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def test_cosines_of_all_pairs():
    frames = random_frames()
    matrix = self_similarity(frames)
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix.diagonal(), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    for i, j in ((0, 1), (7, 31), (39, 2)):
        expected = torch.nn.functional.cosine_similarity(frames[i].double(), frames[j].double(), dim=0)
        assert matrix[i, j].item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(self_similarity(100 * frames.double()), matrix)  # length does not matter


def test_frames_that_have_no_cosines_are_refused():
    with pytest.raises(ValueError, match=r"expected frames \(n, dim\)"):
        self_similarity(torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match="expected frames"):
        self_similarity(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="not all finite"):
        self_similarity(torch.full((3, 3), float("nan")))


def test_panels_share_a_scale_and_name_the_words(tmp_path, monkeypatch):
    seen = []
    original = similarity_module.save
    monkeypatch.setattr(similarity_module, "save", lambda figure, *rest: (seen.append(figure), original(figure, *rest)))
    words = [
        Token("u", 0.1, 0.3, "river", "s"),
        Token("u", 0.5, 0.2, "winter", "s"),
        Token("u", 0.9, 5.0, "too late", "s"),
    ]
    frames = {"before": random_frames(), "after": random_frames(seed=1)}
    plot_self_similarity(frames, tmp_path / "a.png", 0.02, "title", words)
    assert_drawn(tmp_path / "a.png")
    (figure,) = seen
    panels = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in panels] == ["before", "after"]
    limits = {image.get_clim() for axis in panels for image in axis.images}
    assert limits == {(min(float(self_similarity(one).min()) for one in frames.values()), 1.0)}
    for axis, one in zip(panels, frames.values(), strict=True):
        assert axis.get_xlim() == axis.get_ylim() == pytest.approx((0, 0.8))
        torch.testing.assert_close(torch.as_tensor(axis.images[0].get_array().data), self_similarity(one))
        (names,) = axis.child_axes
        assert [label.get_text() for label in names.get_xticklabels()] == ["river", "winter"]
        assert names.get_xticks().tolist() == pytest.approx([0.25, 0.6])
    plot_self_similarity({"alone": random_frames(5)}, tmp_path / "b.png", 0.02)
    assert_drawn(tmp_path / "b.png")
    assert not next(axis for axis in seen[1].axes if axis.images).child_axes


def test_alignments_of_different_sizes_are_drawn(tmp_path):
    alignments = {"before": torch.rand(30, 20), "after": torch.eye(25)}
    plot_alignment(alignments, tmp_path / "a.png", 0.02, "a title that is too long for one line " * 6)
    assert_drawn(tmp_path / "a.png")
