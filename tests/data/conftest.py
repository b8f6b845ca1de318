"""Small audio for the tests, a place for real speech, and a server that speaks the Hub's HTTP API."""

from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import datasets
import numpy as np
import pytest
import soundfile
import torch

RATE = 16000
SHA = "0123456789abcdef0123456789abcdef01234567"


def make_speech(seconds: float = 0.5, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Harmonics of a gliding pitch in syllables, and a little noise; peak 0.5, float32 `(samples,)`."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 40 * rng.random() + 20 * np.sin(2 * np.pi * 1.3 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(k * phase + rng.random()) / k for k in range(1, 20))
    voice = voice * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time)) + 0.05 * rng.standard_normal(time.size)
    return (0.5 * voice / np.abs(voice).max()).astype(np.float32)


def encode(samples: np.ndarray, rate: int = RATE, format: str = "FLAC", subtype: str | None = None) -> bytes:
    """The bytes of an audio file; `samples` `(samples,)` or `(samples, channels)`."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test finds what another one has cached."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def speech():
    """`make_speech`."""
    return make_speech


@pytest.fixture
def encoded():
    """`encode`."""
    return encode


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    """A LibriSpeech tree: `train` (2 speakers, 3 chapters, 7 utterances) and `dev` (1 utterance)."""
    seed = 0
    for chapter, count, suffix in (
        ("train/10/20", 3, "flac"),
        ("train/10/21", 2, "ogg"),
        ("train/9/5", 2, "wav"),
    ):
        folder = tmp_path / chapter
        folder.mkdir(parents=True)
        prefix = "-".join(chapter.split("/")[1:])
        lines = []
        for index in range(count):
            seed += 1
            soundfile.write(folder / f"{prefix}-{index:04d}.{suffix}", make_speech(0.3 + 0.05 * seed, seed), RATE)
            lines.append(f"{prefix}-{index:04d} UTTERANCE NUMBER {seed}\n")
        if suffix != "wav":
            (folder / f"{prefix}.trans.txt").write_text("".join(lines))
    (tmp_path / "dev/30/40").mkdir(parents=True)
    soundfile.write(tmp_path / "dev/30/40/30-40-0000.flac", make_speech(0.3, 99), RATE)
    return tmp_path


@pytest.fixture(scope="session")
def real_speech(shared_speech: Path) -> list[torch.Tensor]:
    """Two utterances of real speech, 12 s each, `(samples,)` at 16 kHz."""
    files = sorted(shared_speech.glob("heldout-clean-5/*/*/*.flac"))
    long = [file for file in files if soundfile.info(file).duration >= 12]
    return [
        torch.from_numpy(soundfile.read(file, dtype="float32", frames=12 * RATE)[0]) for file in (long[0], long[-1])
    ]


class _Hub(BaseHTTPRequestHandler):
    """Answers the requests with which a public dataset is found, listed and read."""

    def _json(self, value: object, status: int = 200) -> None:
        self._reply(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _reply(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": SHA, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _entry(self, path: str) -> dict[str, object]:
        return {"type": "file", "path": path, "size": len(self.server.files[path]), "oid": path_oid(path)}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append(f"POST {self.path}")
        if "/paths-info/" in self.path:
            paths = json.loads(body)["paths"] if body.startswith(b"{") else []
            self._json([self._entry(path) for path in paths if path in self.server.files])
        else:
            self._json({"error": "not here"}, 404)

    def do_GET(self) -> None:
        path, files, repo = unquote(urlparse(self.path).path), self.server.files, self.server.repo
        self.server.seen.append(f"{self.command} {path}")
        api, resolve = f"/api/datasets/{repo}", f"/datasets/{repo}/resolve/"
        missing = {"X-Error-Code": "EntryNotFound"}
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": repo, "sha": SHA, "siblings": siblings, "private": False, "gated": False, "tags": []})
        elif path.startswith(f"{api}/tree/"):
            folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
            start = f"{folder}/" if folder else ""
            inside = [name for name in files if name.startswith(start)]
            folders = {start + name.removeprefix(start).split("/")[0] for name in inside} - set(inside)
            if "recursive=true" not in urlparse(self.path).query.lower():
                inside = [name for name in inside if "/" not in name.removeprefix(start)]
            if inside or folders:
                listed = [{"type": "directory", "path": name, "size": 0, "oid": path_oid(name)} for name in folders]
                self._json(listed + [self._entry(name) for name in inside])
            else:
                self._reply(b"{}", 404, missing)
        elif path.startswith(resolve):
            name = path.removeprefix(resolve).partition("/")[2]
            if name not in files:
                self._reply(b"", 404, missing)
                return
            data, headers, status = (
                files[name],
                {"ETag": f'"{path_oid(name)}"', "Accept-Ranges": "bytes"},
                200,
            )
            wanted = self.headers.get("Range", "").removeprefix("bytes=")
            if wanted and self.command == "GET":
                first, _, last = wanted.partition("-")
                end = min(int(last) + 1 if last else len(data), len(data))
                headers["Content-Range"] = f"bytes {int(first)}-{end - 1}/{len(data)}"
                data, status = data[int(first) : end], 206
            self._reply(data, status, headers)
        else:
            self._reply(b'{"error": "no"}', 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def path_oid(path: str) -> str:
    """A made-up object id for a file."""
    return f"{abs(hash(path)):040x}"[:40]


@pytest.fixture
def hub():
    """A server of one dataset repository, `repo`, with `files` `{path: bytes}`, at `url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.repo, server.files, server.seen = "nobody/speech", {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
