"""One update done the released way: a plain implementation, from its description, of what LASER was published with.

One pair at a time: both views padded into one batch of a stock `transformers` encoder in train mode, its
convolutions without graph; the top two layers and the LayerNorm behind the positional convolution trained, so
that gradients run through all layers; soft-DTW by a serial numba recursion on a cost matrix that is expanded to
`(m, n, dim)`; torchaudio's `PitchShift` and `SpeedPerturbation` in two data workers; gradients of eight pairs
accumulated, clipped, AdamW. Written for this comparison; nothing in it is of the authors' code.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import nn

SAMPLE_RATE = 16_000
PARTS = ("decode", "perturb", "encode", "loss", "backward", "optimizer", "wait")


# ---- the loss ----


@numba.njit(cache=True)
def _softmin_recursion(cost, gamma):
    m, n = cost.shape
    r = np.full((m + 2, n + 2), np.inf)
    r[0, 0] = 0.0
    for i in range(1, m + 1):
        for j in range(1, n + 1):
            a, b, c = -r[i - 1, j - 1] / gamma, -r[i - 1, j] / gamma, -r[i, j - 1] / gamma
            top = max(a, b, c)
            softmin = -gamma * (np.log(np.exp(a - top) + np.exp(b - top) + np.exp(c - top)) + top)
            r[i, j] = cost[i - 1, j - 1] + softmin
    return r


@numba.njit(cache=True)
def _softmin_gradient(cost, r, gamma):
    m, n = cost.shape
    d = np.zeros((m + 2, n + 2))
    d[1 : m + 1, 1 : n + 1] = cost
    e = np.zeros((m + 2, n + 2))
    e[m + 1, n + 1] = 1.0
    r[:, n + 1] = -np.inf
    r[m + 1, :] = -np.inf
    r[m + 1, n + 1] = r[m, n]
    for j in range(n, 0, -1):
        for i in range(m, 0, -1):
            down = np.exp((r[i + 1, j] - r[i, j] - d[i + 1, j]) / gamma)
            right = np.exp((r[i, j + 1] - r[i, j] - d[i, j + 1]) / gamma)
            both = np.exp((r[i + 1, j + 1] - r[i, j] - d[i + 1, j + 1]) / gamma)
            e[i, j] = e[i + 1, j] * down + e[i, j + 1] * right + e[i + 1, j + 1] * both
    return e[1 : m + 1, 1 : n + 1]


class _SoftDTW(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cost, gamma):
        values = cost.detach().cpu().double().numpy()
        r = _softmin_recursion(values, gamma)
        ctx.saved, ctx.like = (values, r, gamma), cost
        return cost.new_tensor(r[-2, -2])

    @staticmethod
    def backward(ctx, upstream):
        return upstream * torch.from_numpy(_softmin_gradient(*ctx.saved)).to(ctx.like), None


def _soft_dtw(x: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
    cost = (x[:, None, :] - y[None, :, :]).square().sum(-1)
    return _SoftDTW.apply(cost, gamma)


def _idm(x: torch.Tensor, margin: float) -> torch.Tensor:
    count = len(x)
    index = torch.arange(count, device=x.device)
    weight = (index[:, None] - index[None, :]).square() + 1.0
    far = (index[:, None] != index[None, :]).float()
    distance = torch.cdist(x, x)
    terms = far * weight * torch.relu(margin - distance) + (1 - far) * distance / weight
    return terms.sum() / count**2


def released_loss(
    x: torch.Tensor, y: torch.Tensor, gamma: float = 0.1, alpha: float = 0.4, margin: float = 1.1
) -> torch.Tensor:
    """Loss of one pair of unit-norm frames `(m, dim)` and `(n, dim)`, a scalar."""
    divergence = _soft_dtw(x, y, gamma) - 0.5 * (_soft_dtw(x, x, gamma) + _soft_dtw(y, y, gamma))
    return divergence + alpha * (_idm(x, margin) + _idm(y, margin))


# ---- the data path ----


class ReleasedPairs(torch.utils.data.Dataset):
    """Clean and perturbed waveform of each file, and what decoding and perturbing took, in seconds."""

    def __init__(self, paths: list[Path]) -> None:
        from torchaudio.transforms import PitchShift, SpeedPerturbation

        self.paths = paths
        self.speed = SpeedPerturbation(SAMPLE_RATE, [0.9, 1.0, 1.1])
        self.pitch = [PitchShift(SAMPLE_RATE, steps) for steps in (2, -2)]

    def __len__(self) -> int:
        return len(self.paths)

    @torch.no_grad()
    def __getitem__(self, index: int) -> dict[str, Any]:
        import soundfile

        start = time.perf_counter()
        clean = torch.from_numpy(soundfile.read(self.paths[index], dtype="float32")[0])
        decoded = time.perf_counter()
        perturbed = random.choice(self.pitch)(self.speed(clean)[0])
        return {
            "views": (clean, perturbed),
            "seconds": {"decode": decoded - start, "perturb": time.perf_counter() - decoded},
        }


def _single(items: list) -> Any:
    return items[0]


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


# ---- the update ----


def released_updates(
    model: nn.Module, paths: list[Path], updates: int, pairs: int, device: str, bf16: bool, workers: int = 2
) -> dict[str, Any]:
    """Time `updates` updates of `pairs` pairs each, after a warm-up of two pairs.

    Args:
        model: stock HuBERT or WavLM, with the recipe's dropouts in its config.
        paths: at least `2 + updates * pairs` audio files.

    Returns:
        `times`, seconds of each update; `seconds` of each of `PARTS` per update, those of decoding and perturbing
        summed in the workers; `losses`, one an update.
    """
    model = model.to(device).train()
    model.requires_grad_(False)
    model.feature_extractor._freeze_parameters()
    for part in (*model.encoder.layers[-2:], model.encoder.layer_norm):
        part.requires_grad_(True)
    connector = nn.Linear(model.config.hidden_size, 256).to(device)
    trained = [p for p in (*model.parameters(), *connector.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, eps=1e-7, weight_decay=0.0)
    # The pitch shifter builds its kernel of a gigabyte on first use: here, so that the workers share it.
    data = ReleasedPairs(paths)
    for shift in data.pitch:
        shift(torch.zeros(SAMPLE_RATE))
    loader = iter(
        torch.utils.data.DataLoader(
            data, batch_size=1, num_workers=workers, collate_fn=_single, worker_init_fn=_one_thread
        )
    )
    seconds = dict.fromkeys(PARTS, 0.0)

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(part: str, start: float) -> float:
        end = now()
        seconds[part] += end - start
        return end

    def pair_step() -> float:
        mark = now()
        item = next(loader)
        mark = timed("wait", mark)
        for part, spent in item["seconds"].items():
            seconds[part] += spent
        lengths = [len(view) for view in item["views"]]
        batch = nn.utils.rnn.pad_sequence(item["views"], batch_first=True).to(device)
        mask = (torch.arange(batch.shape[1])[None] < torch.tensor(lengths)[:, None]).long().to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            frames = model(batch, attention_mask=mask).last_hidden_state
            projected = nn.functional.normalize(connector(frames).float(), dim=-1)
        mark = timed("encode", mark)
        x, y = (view[: round(length / 320)] for view, length in zip(projected, lengths, strict=True))
        loss = released_loss(x, y)
        mark = timed("loss", mark)
        (loss / pairs).backward()
        timed("backward", mark)
        return loss.item()

    def step() -> None:
        mark = now()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        timed("optimizer", mark)

    for _ in range(2):
        pair_step()
    step()
    seconds = dict.fromkeys(PARTS, 0.0)
    times, losses = [], []
    for _ in range(updates):
        start = now()
        losses.append(sum(pair_step() for _ in range(pairs)) / pairs)
        step()
        times.append(now() - start)
    return {"times": times, "seconds": {part: spent / updates for part, spent in seconds.items()}, "losses": losses}
