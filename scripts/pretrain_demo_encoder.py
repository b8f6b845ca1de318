"""Pre-train the small HuBERT that ships with laser_hf, from audio alone.

The recipe is HuBERT's (Hsu et al., 2021, https://arxiv.org/abs/2106.07447): hide spans of frames and predict,
for each hidden frame, the k-means cluster of the clean speech at that time. Round 1 clusters MFCCs, round 2
clusters hidden states of the round-1 model and continues from its weights. What differs is made for a few
hours of speech and an hour of two CPU cores:

- a cheap convolutional stack (strides 10, 4, 4, 2; receptive field 400 and hop 320 samples, as HuBERT-base)
  whose first layer is a fixed bank of Gabor filters on the mel scale: no gradient is computed at 1600 Hz;
- two codebooks at a time, each with its own linear head (HuBERT's cluster ensemble);
- crops are played up to 18 % slower or faster, so that pitch, formants and tempo change, coloured by a random
  equaliser, or given some noise, each with some probability, while the targets stay those of the clean
  original at the mapped time, and the visible frames are predicted too;
- crops of 1, 2 and 4 seconds, since the first GroupNorm takes its statistics over the whole input.

No transcripts and no speaker labels are read. Killed runs continue from ``OUTPUT_DIR/checkpoint.pt``.

Example::

    OMP_WAIT_POLICY=PASSIVE python scripts/pretrain_demo_encoder.py \
        --train_data LibriSpeech/train-clean-5 LibriSpeech/one-per-speaker --output_dir runs/demo_encoder
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

SAMPLE_RATE = 16_000
HOP, WINDOW = 320, 400  # samples from frame to frame, and seen by one frame of the convolutional stack
AUDIO_SUFFIXES = {".flac", ".wav", ".ogg", ".opus", ".mp3"}
CROP_SECONDS = (1.0, 2.0, 4.0)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="Run it again with the same arguments to continue a killed run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--train_data", nargs="+", type=Path, required=True, help="folders searched for 16 kHz audio files")
    add("--output_dir", type=Path, required=True, help="checkpoint, round-1 model and final model go here")
    add("--steps_round1", type=int, default=1200, help="updates on clusters of MFCCs")
    add(
        "--steps_round2",
        type=int,
        default=1800,
        help="updates on clusters of hidden states; 0 stops after round 1",
    )
    add(
        "--max_minutes",
        type=float,
        help="end a round by the clock, its learning rate then falls by the clock",
    )
    add("--seed", type=int, default=0, help="of the weights, crops, masks and k-means")
    add("--batch_seconds", type=float, default=32.0, help="seconds of speech in an update")
    add("--learning_rate", type=float, default=1.5e-3, help="peak of AdamW, after a linear warm-up over 8 %%")
    add("--learning_rate_round2", type=float, default=1.0e-3, help="the same for round 2")
    add(
        "--mask_prob",
        type=float,
        default=0.65,
        help="started spans times span length, as a share of all frames",
    )
    add("--mask_length", type=int, default=10, help="frames (20 ms each) in a masked span")
    add("--unmasked_weight", type=float, default=0.5, help="weight of the loss on frames that are not masked")
    add(
        "--perturb_prob",
        type=float,
        default=0.6,
        help="share of crops that are resampled; see the description",
    )
    add(
        "--dropout",
        type=float,
        default=0.0,
        help="of hidden states and attention; any but 0 also skips layers with probability 0.05 (HuBERT: 0.1)",
    )
    add(
        "--clusters_round1",
        type=int,
        nargs="+",
        default=[100, 300],
        help="MFCC frames; MFCC windows of 145 ms",
    )
    add("--clusters_round2", type=int, nargs="+", default=[100, 500], help="codebooks on hidden states")
    add("--teacher_layers", type=int, nargs="+", default=[3, 4], help="hidden states clustered for round 2")
    add(
        "--hidden_size",
        type=int,
        default=256,
        help="width of the Transformer; the feed-forward layer has 4 times as many",
    )
    add("--num_layers", type=int, default=4, help="Transformer layers")
    add("--max_utterances", type=int, default=None, help="use only so many files (for a trial)")
    add("--checkpoint_every", type=int, default=200, help="updates between checkpoints")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------- data


def read_speech(folders: list[Path], limit: int | None = None) -> list[np.ndarray]:
    """Decode every audio file under ``folders`` into int16 arrays of shape (samples,), in a fixed order."""
    paths = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no audio files under {', '.join(map(str, folders))}")
    speech = []
    for path in tqdm(paths[:limit], desc="decoding", mininterval=5):
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        if rate != SAMPLE_RATE:
            raise ValueError(f"{path} has {rate} Hz; {SAMPLE_RATE} Hz expected")
        if len(samples) > 1.25 * SAMPLE_RATE:
            speech.append(samples[:, 0].copy())
    return speech


class CropSampler:
    """Draws batches of crops, their perturbed waveforms and the clean targets at the mapped times."""

    def __init__(self, speech: list[np.ndarray], targets: list[np.ndarray], args: argparse.Namespace):
        self.speech, self.targets, self.args = speech, targets, args
        self.samples = np.array([len(s) for s in speech])
        self.random = np.random.default_rng(args.seed)

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns waveforms (batch, samples), targets (batch, frames, codebooks), mask (batch, frames)."""
        seconds = self.random.choice(CROP_SECONDS)
        length = int(seconds * SAMPLE_RATE)
        long_enough = np.where(self.samples > 1.2 * length + WINDOW, self.samples, 0)
        if not long_enough.any():
            return self.batch()
        count = max(1, round(self.args.batch_seconds / seconds))
        rows = self.random.choice(len(self.speech), size=count, p=long_enough / long_enough.sum())
        waveforms, targets = zip(*(self.crop(row, length) for row in rows), strict=True)
        targets = np.stack(targets)
        return torch.from_numpy(np.stack(waveforms)), torch.from_numpy(targets), self.mask(*targets.shape[:2])

    def crop(self, row: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """One crop: float32 waveform (samples,) and int64 targets (frames, codebooks)."""
        random, speech, targets = self.random, self.speech[row], self.targets[row]
        rate = math.exp(random.uniform(-0.17, 0.17)) if random.random() < self.args.perturb_prob else 1.0
        start = HOP * int(random.integers(0, (len(speech) - math.ceil(length * rate) - 1) // HOP + 1))
        segment = speech[start : start + math.ceil(length * rate) + 1].astype(np.float32) / 32768
        if rate == 1.0:
            waveform = segment[:length]
        else:
            waveform = np.interp(np.arange(length) * rate, np.arange(len(segment)), segment).astype(np.float32)
        if random.random() < self.args.perturb_prob:
            waveform = equalise(waveform, random)
        if random.random() < 0.25 * self.args.perturb_prob:
            level = np.sqrt(np.mean(waveform**2)) * 10 ** (-random.uniform(10, 30) / 20)
            waveform = waveform + level * random.standard_normal(length, dtype=np.float32)
        frames = (length - WINDOW) // HOP + 1
        centres = start + rate * (HOP * np.arange(frames) + WINDOW / 2)  # in samples of the original
        index = np.rint((centres - WINDOW / 2) / HOP).astype(int).clip(0, len(targets) - 1)
        return waveform.astype(np.float32), targets[index].astype(np.int64)

    def mask(self, batch: int, frames: int) -> Tensor:
        """Equally many spans of ``mask_length`` frames a row, which may overlap: (batch, frames) bool."""
        span = self.args.mask_length
        spans = max(1, round(self.args.mask_prob * frames / span))
        starts = self.random.integers(0, frames - span + 1, size=(batch, spans, 1))
        mask = np.zeros((batch, frames), dtype=bool)
        np.put_along_axis(mask, (starts + np.arange(span)).reshape(batch, -1), True, axis=1)
        return torch.from_numpy(mask)


def equalise(waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Filter with a smooth random gain: 4 dB of standard deviation at eight points of the spectrum."""
    spectrum = np.fft.rfft(waveform)
    points = np.linspace(0, 1, 8) ** 2 * len(spectrum)
    gain = np.interp(np.arange(len(spectrum)), points, random.normal(0, 4, size=8))
    return np.fft.irfft(spectrum * 10 ** (gain / 20), n=len(waveform)).astype(np.float32)


# ------------------------------------------------------------------------------------------------- targets


def mfcc_features(speech: list[np.ndarray]) -> list[list[Tensor]]:
    """Two views of each utterance at 50 frames a second, normalised in it: [(frames, 39), (frames, 91)].

    The first is 13 MFCCs with first and second differences. The second stacks the MFCCs of seven times, 20 ms
    apart. Frame t is centred on sample 320 t + 200, like the frames of the model.
    """
    padding = (512 - WINDOW) // 2
    transform = torchaudio.transforms.MFCC(
        SAMPLE_RATE,
        13,
        melkwargs={"n_mels": 40, "n_fft": 512, "win_length": WINDOW, "hop_length": 160, "center": False},
    )
    views = []
    for samples in tqdm(speech, desc="MFCCs", mininterval=5):
        waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
        mfcc = transform(F.pad(waveform, (padding, padding)))  # (13, 10 ms frames)
        delta = torchaudio.functional.compute_deltas(mfcc)
        full = torch.cat([mfcc, delta, torchaudio.functional.compute_deltas(delta)]).T
        full = (full - full.mean(0)) / full.std(0).clamp_min(1e-5)
        static = F.pad(full[:, :13].T, (6, 6), mode="replicate").T
        window = torch.cat([static[shift : shift + len(full)] for shift in range(0, 13, 2)], dim=1)
        views.append([full[::2], window[::2]])
    return views


@torch.inference_mode()
def hidden_features(model: HubertModel, speech: list[np.ndarray], layers: list[int]) -> list[Tensor]:
    """Concatenated hidden states of ``layers``, each normalised per utterance: (frames, layers * hidden)."""
    model.eval()
    features = []
    for samples in tqdm(speech, desc="hidden states", mininterval=5):
        waveform = torch.from_numpy(samples.astype(np.float32) / 32768)[None]
        states = model(waveform, output_hidden_states=True).hidden_states
        states = [states[layer][0] for layer in layers]
        features.append(torch.cat([(s - s.mean(0)) / s.std(0).clamp_min(1e-5) for s in states], dim=1).half())
    return features


def cluster(features: list[Tensor], clusters: int, seed: int, dims: int = 64, fit: int = 120_000) -> np.ndarray:
    """K-means on ``dims`` principal components, fitted to at most ``fit`` frames; labels (frames,) int16."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.cat(features)
    chosen = frames[torch.randperm(len(frames), generator=generator)[:fit]].float()
    mean = chosen.mean(0)
    basis = torch.linalg.eigh((chosen - mean).T @ (chosen - mean))[1][:, -dims:]
    sample = (chosen - mean) @ basis
    clusters = min(clusters, len(sample))
    centres = sample[:clusters].clone()
    for _ in tqdm(range(25), desc=f"k-means {clusters}", leave=False, mininterval=5):
        labels = nearest(sample, centres)
        counts = torch.bincount(labels, minlength=clusters)
        centres = torch.zeros_like(centres).index_add_(0, labels, sample) / counts.clamp_min(1)[:, None]
        empty = counts == 0
        centres[empty] = sample[torch.randint(len(sample), (int(empty.sum()),), generator=generator)]
    return torch.cat([nearest((f.float() - mean) @ basis, centres) for f in features]).numpy().astype(np.int16)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre (Euclidean) of each point: (points,)."""
    offset = 0.5 * centres.square().sum(1)
    return torch.cat([(part @ centres.T - offset).argmax(1) for part in points.split(20_000)])


def make_targets(round_: int, model: HubertModel, speech: list[np.ndarray], args: argparse.Namespace) -> list:
    """Cluster labels of each utterance, int16 (frames, codebooks); kept in ``output_dir`` to resume with."""
    path = args.output_dir / f"targets_round{round_}.npz"
    lengths = [(len(s) - WINDOW) // HOP + 1 for s in speech]
    if not path.exists():
        if round_ == 1:
            views = list(zip(*mfcc_features(speech), strict=True))
            pairs = zip(views, args.clusters_round1, strict=True)
        else:
            features = hidden_features(model, speech, args.teacher_layers)
            pairs = [(features, clusters) for clusters in args.clusters_round2]
        labels = [cluster(list(f), k, args.seed + i) for i, (f, k) in enumerate(pairs)]
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, labels=np.stack(labels, axis=1))
        os.replace(partial, path)
    return np.split(np.load(path)["labels"], np.cumsum(lengths)[:-1])


# --------------------------------------------------------------------------------------------------- model


def build_model(args: argparse.Namespace) -> HubertModel:
    """A HuBERT-base-like model whose first convolution holds mel-spaced Gabor filters in three phases."""
    config = HubertConfig(
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=max(1, args.hidden_size // 64),
        conv_dim=(96, 128, 192, 256),
        conv_kernel=(80, 5, 4, 2),
        conv_stride=(10, 4, 4, 2),
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        layerdrop=0.05,
        mask_time_prob=0.05,
        apply_spec_augment=True,
        activation_dropout=0.0,
        feat_proj_dropout=0.1,
    )
    model = HubertModel(config)
    first = model.feature_extractor.conv_layers[0]
    bands = config.conv_dim[0] // 3
    mel = torch.linspace(math.log1p(60 / 700), math.log1p(7400 / 700), bands)
    hertz = 700 * torch.expm1(mel)
    seconds = (torch.arange(config.conv_kernel[0]) - (config.conv_kernel[0] - 1) / 2) / SAMPLE_RATE
    phases = torch.arange(3)[:, None, None] * (2 * math.pi / 3)
    waves = torch.cos(2 * math.pi * hertz[:, None] * seconds + phases)  # (phases, bands, taps)
    filters = (waves * torch.hann_window(len(seconds) + 2)[1:-1]).reshape(3 * bands, 1, -1)
    with torch.no_grad():  # norm 30: far above the epsilon of GroupNorm also in weak bands
        first.conv.weight.copy_(30 * filters / filters.norm(dim=2, keepdim=True))
        first.layer_norm.weight.fill_(3.0)
    return model


def train_round(
    round_: int,
    steps: int,
    model: HubertModel,
    speech: list[np.ndarray],
    args: argparse.Namespace,
    record: dict,
) -> None:
    """One round of masked prediction on ``model``, in place; continues from a checkpoint of that round."""
    targets = make_targets(round_, model, speech, args)
    clusters = args.clusters_round1 if round_ == 1 else args.clusters_round2
    heads = nn.ModuleList(nn.Linear(model.config.hidden_size, k) for k in clusters)
    model.feature_extractor.conv_layers[0].requires_grad_(False)
    model.feature_extractor._requires_grad = False  # else Transformers asks for gradients of the waveform
    for module in model.modules():  # dropout costs a tenth of the time
        if isinstance(module, nn.Dropout):
            module.p = args.dropout
    model.config.attention_dropout = args.dropout
    model.config.layerdrop = 0.05 if args.dropout else 0.0
    for layer in model.encoder.layers:
        layer.attention.dropout = args.dropout
    parameters = [p for m in (model, heads) for p in m.parameters() if p.requires_grad]
    peak = args.learning_rate if round_ == 1 else args.learning_rate_round2
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    sampler = CropSampler(speech, targets, args)
    first, path = 0, args.output_dir / "checkpoint.pt"
    state = load_checkpoint(path)
    if state and state["round"] == round_ and "optimizer" in state:
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        sampler.random.bit_generator.state = state["random"]
        torch.set_rng_state(state["torch_random"])
        first = state["step"]

    model.train()
    warmup, began, sums = max(1, round(0.08 * steps)), time.time(), []
    spent = record["rounds"].setdefault(str(round_), {"steps": steps, "seconds": 0.0, "hours": 0.0, "curve": []})
    progress = tqdm(range(first, steps), desc=f"round {round_}", initial=first, total=steps, mininterval=5)
    for step in progress:
        clock = (spent["seconds"] + time.time() - began) / 60 / (args.max_minutes or math.inf)
        last = step + 1 == steps or clock >= 1
        share = min(1.0, max(0.0, (step - warmup) / (steps - warmup), clock))
        factor = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
        waveforms, labels, mask = sampler.batch()
        frames = model(waveforms, mask_time_indices=mask).last_hidden_state
        masked = visible = 0.0
        correct = []
        for book, head in enumerate(heads):
            logits, goal = head(frames), labels[..., book]
            masked = masked + F.cross_entropy(logits[mask], goal[mask]) / len(heads)
            visible = visible + F.cross_entropy(logits[~mask], goal[~mask]) / len(heads)
            hits = (logits.detach().argmax(-1) == goal).float()
            correct += [hits[mask].mean(), hits[~mask].mean()]
        loss = masked + args.unmasked_weight * visible
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()} in round {round_}, step {step}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        spent["hours"] += waveforms.numel() / SAMPLE_RATE / 3600
        sums.append([masked.item(), visible.item(), *(c.item() for c in correct)])
        if (step + 1) % 50 == 0 or last:
            means = np.mean(sums, axis=0).round(4).tolist()
            sums = []
            point = {"step": step + 1, "masked_loss": means[0], "visible_loss": means[1]}
            point |= {"masked_accuracy": means[2::2], "visible_accuracy": means[3::2]}
            spent["curve"].append(point)
            progress.set_postfix_str(f"loss {means[0]:.3f} accuracy {means[2]:.3f}/{means[4]:.3f}", refresh=False)
            progress.write(json.dumps(point))
        if (step + 1) % args.checkpoint_every == 0 or last:
            now, spent["steps"] = time.time(), step + 1
            spent["seconds"], began = round(spent["seconds"] + now - began, 1), now
            state = {
                "round": round_,
                "step": step + 1,
                "model": model.state_dict(),
                "heads": heads.state_dict(),
            }
            state |= {"optimizer": optimizer.state_dict(), "random": sampler.random.bit_generator.state}
            state["torch_random"] = torch.get_rng_state()
            save_checkpoint(state | {"record": record}, path)
        if last:
            break


def save_checkpoint(state: dict, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict | None:
    return torch.load(path, weights_only=False) if path.exists() else None


# -------------------------------------------------------------------------------------------------- output


def export(model: HubertModel, folder: Path, record: dict) -> None:
    """Write a folder for ``AutoModel`` and ``AutoFeatureExtractor``: weights in float16, and the record."""
    config = HubertConfig(**{**model.config.to_dict(), **record["dropouts"]})
    config.dtype = "float32"  # what the weights are to be loaded as; the file holds float16
    clone = HubertModel(config)
    clone.load_state_dict(model.state_dict())
    clone.half().save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(saved, indent=2) + "\n")
    Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, do_normalize=False, return_attention_mask=True).save_pretrained(
        folder
    )
    (folder / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")


def describe_run(args: argparse.Namespace, speech: list[np.ndarray], model: HubertModel) -> dict:
    """Everything that is known before the first update."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    settings = {k: v for k, v in vars(args).items() if k not in ("train_data", "output_dir")}
    return {
        "script": "scripts/pretrain_demo_encoder.py",
        "settings": settings | {"crop_seconds": CROP_SECONDS},
        "data": [folder.name for folder in args.train_data],
        "data_utterances": len(speech),
        "data_hours": round(sum(map(len, speech)) / SAMPLE_RATE / 3600, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dropouts": {"attention_dropout": 0.1, "layerdrop": 0.05},
        "commit": commit.stdout.strip() or None,
        "hardware": f"{torch.get_num_threads()} threads, {cpu}",
        "versions": {m.__name__: m.__version__ for m in (torch, torchaudio, transformers, np)},
        "rounds": {},
    }


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = build_model(args)
    speech = read_speech(args.train_data, args.max_utterances)
    record = describe_run(args, speech, model)
    state = load_checkpoint(args.output_dir / "checkpoint.pt")
    if state:
        record["rounds"] = state["record"]["rounds"]
        model.load_state_dict(state["model"])
    if not state or state["round"] == 1:
        train_round(1, args.steps_round1, model, speech, args, record)
        export(model, args.output_dir / "round1", record)
    if args.steps_round2:
        train_round(2, args.steps_round2, model, speech, args, record)
        export(model, args.output_dir / "encoder", record)


if __name__ == "__main__":
    main()
