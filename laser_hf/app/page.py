"""The page of `laser-hf app`: what is on it, and what its buttons do."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from matplotlib.image import imread

from ..data import BadAudio, decode_audio
from ..demo import ENCODER_DIR, SPEECH_DIR
from ..encoders import SAMPLE_RATE
from ..errors import LaserError
from ..superb.features import load_features, pick_device
from ..superb.qbe.report import plot_matches
from .search import Collection, Index, distances

LAUNCH = {
    "max_file_size": "10mb",
    "css": "footer {display: none !important} .gradio-container {max-width: 1100px !important}",
    **{"run_history": False, "footer_links": [], "ssr_mode": False, "quiet": True, "prevent_thread_lock": True},
}
MAX_SECONDS, AROUND = 30.0, 0.3  # of a visitor's recording; played before and behind a hit
KEPT = (600, 3600)  # seconds between two looks for files to delete, and their age then
PROGRESS = gr.Progress(track_tqdm=True)
NAMES = {str(SPEECH_DIR / "heldout"): "shipped speech, six voices", str(ENCODER_DIR): "shipped encoder"}
HITS = ["", "recording", "seconds", "score", "said"]
TITLE = """# Find a spoken word
No text is used: an encoder's frames of the word are aligned with those of every recording (query by example)."""


class Page:
    """The events of the page, and its layout (`build`); `cache` is the folder for frames, see `Index`."""

    def __init__(self, cache: Path, device: str = "auto"):
        @functools.lru_cache(8)
        def index(model: str, folder: str, _: Any) -> Index:
            label = f"Encoding {NAMES.get(folder, folder)} with {NAMES.get(model, model)}"
            return Index(self.load(model), model, Collection(folder), cache, label)

        self.load = functools.lru_cache(4)(functools.partial(load_features, device=pick_device(device)))
        self.index = index

    def indices(self, folder: str, *models: str) -> dict[str, Index]:
        """The indices of a folder by the names of encoders, of which some may be empty or the same."""
        files, models = Collection(folder).files, dict.fromkeys(filter(None, models))
        return {NAMES.get(model, model): self.index(model, folder, files) for model in models}

    def search(self, folder: str, model: str, other: str, pick: str | None, audio: str | None, _=PROGRESS) -> list:
        """Both tables of hits, and what `show` needs. Of a word that was picked, other voices are searched."""
        waveform, collection, without, holding = read(audio), Collection(folder), set(), None
        if pick:
            _, word = collection.picks[pick]
            without = {number for number, token in collection.words if token.speaker == word.speaker}
            holding = {number for number, token in collection.words if token.label == word.label}
        tables, found = [gr.Dataframe(visible=False)] * 2, []
        for place, (name, index) in enumerate(self.indices(folder, model, other).items()):
            query, rows = index.frames(waveform), []
            hits = index.search(query, without=without)
            for rank, (number, score, start, end) in enumerate(hits, 1):
                said = "" if holding is None else "yes" if number in holding else "no"
                file = collection.utterances[number].audio.name
                rows.append([rank, file, f"{start:.2f} – {end:.2f}", f"{score:.3f}", said])
            tables[place] = gr.Dataframe(rows, label=name, visible=True)
            found.append((name, index, query, hits))
        return [*tables, found]

    def show(self, found: Sequence[tuple], which: int = 0, row: int = 0) -> tuple[Any, Any]:
        """The sound of a hit, and its match by every encoder."""
        _, index, _, hits = found[which]
        number, _, first, last = hits[row]
        utterance = index.collection.utterances[number]
        start, end = (max(0, round(at * SAMPLE_RATE)) for at in (first - AROUND, last + AROUND))
        label = f"{utterance.audio.name}, {first:.2f} to {last:.2f} s, and {AROUND} s on both sides"
        heard = gr.Audio(sound(decode_audio(utterance.audio).waveform[start:end]), label=label)
        pairs = {name: (query, index.recording(number)) for name, index, query, _ in found}
        return heard, picture(pairs, index.features.frame_seconds)

    def compare(self, folder: str, model: str, other: str, one: str | None, two: str | None, _=PROGRESS) -> Any:
        """Distances and alignment of two recordings, by every encoder."""
        waveforms, indices = [read(one), read(two)], self.indices(folder, model, other)
        pairs = {name: [index.frames(waveform) for waveform in waveforms] for name, index in indices.items()}
        return picture(pairs, next(iter(indices.values())).features.frame_seconds)

    def build(self, models: Sequence[str], folders: Sequence[str], fixed: bool = False) -> gr.Blocks:
        """The page; `LaserError` if an encoder or folder cannot be used. `fixed`: visitors can name no others."""
        for model in models:
            self.load(model)
        encoders, places = ([(NAMES.get(one, one), one) for one in given] for given in (models, folders))
        free = {"allow_custom_value": not fixed}
        recording = functools.partial(gr.Audio, sources=["upload", "microphone"], type="filepath", buttons=[])
        image = functools.partial(gr.Image, interactive=False, show_label=False, buttons=["download", "fullscreen"])
        with gr.Blocks(title="Find a spoken word", analytics_enabled=False, delete_cache=KEPT) as blocks:
            gr.Markdown(TITLE)
            with gr.Row():
                folder = gr.Dropdown(places, value=folders[0], label="Recordings", **free)
                model = gr.Dropdown(encoders, value=models[0], label="Encoder", **free)
                other = gr.Dropdown([("none", ""), *encoders], value=[*models, ""][1], label="Beside it", **free)
            given = [folder, model, other]
            with gr.Tab("Search"):
                with gr.Row():
                    words = list(Collection(folders[0]).picks)
                    pick = gr.Dropdown(words, value=None, label="A word of these recordings", num_choices_shown=None)
                    audio = recording(label="or one of your own")
                go, found = gr.Button("Search", variant="primary"), gr.State()
                with gr.Row():
                    hits = [gr.Dataframe(headers=HITS, interactive=False, visible=False) for _ in range(2)]
                shown = [gr.Audio(label="A hit", interactive=False, buttons=["download"]), image()]
            with gr.Tab("Compare"):
                labels = "One recording of a sentence (query)", "Another (document)"
                with gr.Row():
                    pair = [recording(label=label) for label in labels]
                both, compared = gr.Button("Compare", variant="primary"), image()

            def select(known: Any, which: int, at: gr.SelectData) -> tuple[Any, Any]:
                return self.show(known, which, at.index[0])

            on = functools.partial(gr.on, concurrency_id="one at a time")
            offer = explained(lambda folder: gr.Dropdown(list(Collection(folder).picks), value=None))
            on([folder.change], offer, [folder], [pick])
            hear = explained(lambda folder, pick: sound(Collection(folder).cut(pick)))
            on([pick.input], hear, [folder, pick], [audio])
            on([audio.upload, audio.stop_recording, audio.clear], lambda: None, [], [pick])  # it is another word now
            done = on([go.click], explained(self.search), [*given, pick, audio], [*hits, found], show_progress_on=shown)
            done.success(explained(self.show), [found], shown, concurrency_id="one at a time")
            for which, table in enumerate(hits):
                on([table.select], explained(select), [found, gr.State(which)], shown)
            on([both.click], explained(self.compare), [*given, *pair], [compared])
        return blocks


def explained(action: Callable) -> Callable:
    """The action of an event; what a user can mend becomes a sentence on the page."""

    @functools.wraps(action)
    def tried(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except (LaserError, OSError) as error:
            said = str(error)
            if isinstance(error, BadAudio):  # the reason, without the folder of uploads
                said = f"This recording cannot be used: {error.reason.rpartition('/')[2]}"
            raise gr.Error(said, duration=None, print_exception=False) from error

    return tried


def read(path: str | None) -> torch.Tensor:
    """A recording that a visitor gave, `(samples,)` at 16 kHz; `LaserError` if it cannot be used."""
    if path is None:
        raise LaserError("There is no recording yet: pick a word, record it or upload a file.")
    return decode_audio(path, max_seconds=MAX_SECONDS).waveform


def sound(waveform: torch.Tensor) -> Any:
    """A waveform as gradio plays it: 16 bits, as loud as it is."""
    return SAMPLE_RATE, (waveform.clamp(-1, 1) * 32767).short().numpy()


def picture(pairs: Mapping[str, Sequence[torch.Tensor]], frame_seconds: float) -> np.ndarray:
    """Distances and alignments of frames by the name of the encoder, below each other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "match.png"
        plot_matches({name: distances(*pair) for name, pair in pairs.items()}, path, frame_seconds)
        return (255 * imread(path)).astype(np.uint8)
