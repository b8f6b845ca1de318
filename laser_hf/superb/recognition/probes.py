"""The trained part: weighted sum of hidden states, SpecAugment where the recipe has it, and a CTC head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...records import read_json, write_json
from .featurizer import WeightedSum
from .recipe import AsrRecipe, PrRecipe, Recipe
from .spec_augment import SpecAugment

WEIGHTS_NAME = "probe.safetensors"
CONFIG_NAME = "probe.json"


def reverse_valid(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Turn around the first `lengths` (batch,) frames of each utterance of (batch, frames, dim); padding stays."""
    position = torch.arange(features.shape[1], device=features.device)
    lengths = lengths.to(features.device).unsqueeze(1)
    source = torch.where(position < lengths, lengths - 1 - position, position)
    return features.gather(1, source.unsqueeze(2).expand_as(features))


class BiLstm(nn.Module):
    """One bidirectional LSTM layer over a padded batch, exact per utterance.

    It computes what `nn.LSTM(bidirectional=True)` makes of packed sequences, as two LSTMs of which the second reads
    each utterance backwards: on CPUs the backward pass of packed sequences takes time quadratic in the frames.

    Args:
        input_size: dimension of the input.
        hidden_size: units per direction.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.forwards = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.backwards = nn.LSTM(input_size, hidden_size, batch_first=True)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(batch, frames, input_size) -> (batch, frames, 2 * hidden_size); what lies in the padding means nothing."""
        ahead = self.forwards(features)[0]
        back = reverse_valid(self.backwards(reverse_valid(features, lengths))[0], lengths)
        return torch.cat((ahead, back), dim=2)


class LstmHead(nn.Module):
    """Linear projection, bidirectional LSTM layers with dropout behind each, linear output (SUPERB's ASR).

    Args:
        dim: of the features.
        classes: of the output.
        projection_size, lstm_size, lstm_layers, dropout: as in `AsrRecipe`.
    """

    def __init__(
        self, dim: int, classes: int, projection_size: int, lstm_size: int, lstm_layers: int = 2, dropout: float = 0.2
    ):
        super().__init__()
        self.projection = nn.Linear(dim, projection_size)
        sizes = [projection_size] + [2 * lstm_size] * lstm_layers
        self.lstms = nn.ModuleList(BiLstm(size, lstm_size) for size in sizes[:-1])
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(sizes[-1], classes)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(batch, frames, dim) with `lengths` (batch,) -> logits (batch, frames, classes)."""
        hidden = self.projection(features)
        for lstm in self.lstms:
            hidden = self.dropout(lstm(hidden, lengths))
        return self.output(hidden)


class LinearHead(nn.Module):
    """Two linear maps and nothing between them (SUPERB's PR).

    Args:
        dim: of the features.
        classes: of the output.
        projection_size: dimension between the two.
    """

    def __init__(self, dim: int, classes: int, projection_size: int):
        super().__init__()
        self.projection = nn.Linear(dim, projection_size)
        self.output = nn.Linear(projection_size, classes)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(batch, frames, dim) -> logits (batch, frames, classes); every frame for itself."""
        return self.output(self.projection(features))


class Probe(nn.Module):
    """Hidden states to frame-wise log probabilities.

    Args:
        layers, dim: hidden states of the encoder and their dimension.
        head: of logits.
        augment: applied to the weighted sum in training; `None` for none.
    """

    def __init__(self, layers: int, dim: int, head: nn.Module, augment: SpecAugment | None = None):
        super().__init__()
        self.weighted_sum = WeightedSum(layers)
        self.head = head
        self.augment = augment

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """States (layers, batch, frames, dim), frames in use (batch,) -> (batch, frames, classes) float32."""
        features = self.weighted_sum(states)
        if self.training and self.augment is not None:
            features = self.augment(features, lengths)
        return self.head(features, lengths).float().log_softmax(-1)


def build_probe(recipe: Recipe, layers: int, dim: int, classes: int) -> Probe:
    """The probe of a recipe for an encoder with `layers` hidden states of `dim`."""
    if isinstance(recipe, AsrRecipe):
        head = LstmHead(dim, classes, recipe.projection_size, recipe.lstm_size, recipe.lstm_layers, recipe.dropout)
        augment = SpecAugment(
            recipe.warp_window,
            recipe.feature_masks,
            recipe.feature_mask_width,
            recipe.time_masks,
            recipe.time_mask_width,
        )
        return Probe(layers, dim, head, augment)
    assert isinstance(recipe, PrRecipe)
    return Probe(layers, dim, LinearHead(dim, classes, recipe.projection_size))


def save_weights(probe: Probe, path: Path) -> None:
    """Write the weights of a probe as safetensors."""
    save_file({name: value.detach().cpu().contiguous() for name, value in probe.state_dict().items()}, path)


def save_probe(folder: Path, probe: Probe, config: dict[str, Any]) -> None:
    """Write `probe.safetensors` and `probe.json`, from which `load_probe` makes it again.

    Args:
        folder: where.
        probe: trained.
        config: `task`, `recipe` (a dict), `layers`, `dim`, `vocabulary`, and what else a user should know.
    """
    save_weights(probe, folder / WEIGHTS_NAME)
    write_json(folder / CONFIG_NAME, config)


def load_probe(folder: Path) -> tuple[Probe, dict[str, Any]]:
    """Probe in evaluation mode and its `probe.json`.

    Raises:
        FileNotFoundError: the folder holds no probe.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file() or not (folder / WEIGHTS_NAME).is_file():
        below = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))
        hint = f" There are probes in {', '.join(below)} below it." if below else ""
        raise FileNotFoundError(
            f"{folder} holds no finished probe ({CONFIG_NAME}, {WEIGHTS_NAME}); expected the --output_dir "
            f"of an asr or pr run.{hint}"
        )
    config = read_json(folder / CONFIG_NAME)
    recipe = {"asr": AsrRecipe, "pr": PrRecipe}[config["task"]](**config["recipe"])
    probe = build_probe(recipe, config["layers"], config["dim"], len(config["vocabulary"]))
    probe.load_state_dict(load_file(folder / WEIGHTS_NAME))
    return probe.eval(), config
