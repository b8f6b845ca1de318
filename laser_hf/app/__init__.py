"""`laser-hf app`: a page in the browser that searches for a spoken word, with one encoder or two side by side."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import cli
from ..demo import ENCODER_DIR, SPEECH_DIR
from ..errors import LaserError

LOOPBACK = ("127.0.0.1", "localhost")
CACHE = Path.home() / ".cache" / "laser_hf" / "app"
TUNED = Path("outputs/demo")  # where the demo leaves its encoder


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C; `LaserError` if an encoder, a folder or the address cannot be used."""
    parser = argparse.ArgumentParser(
        prog="laser-hf app",
        formatter_class=cli.HelpFormatter,
        description="Open a page in the browser that finds a spoken word in recordings and compares two recordings of "
        "one sentence, with one encoder or two side by side. Only this machine can reach the page unless --host or "
        "--share is given. Uploads are deleted after an hour, and when the program ends.",
    )
    add = parser.add_argument
    add("--model", nargs="+", help=f"one or two encoders, ids or folders (default: the shipped one, and {TUNED})")
    shipped = [str(SPEECH_DIR / "heldout")]
    add("--data", nargs="+", default=shipped, help="folders of recordings to search in (default: the shipped speech)")
    add("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one")
    add("--cache_dir", type=Path, default=CACHE, help="frames of recordings are kept here")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--host", default=LOOPBACK[0], help="0.0.0.0 lets in everybody who reaches this machine")
    add("--share", action="store_true", help="also make a public link, which leads through a server of gradio.live")
    options = parser.parse_args(argv)
    models = options.model or [str(path) for path in (ENCODER_DIR, TUNED) if (path / "config.json").is_file()]
    if len(models) > 2:
        raise LaserError(f"--model takes one or two encoders, not {len(models)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are deleted then, too
    with tempfile.TemporaryDirectory(prefix="laser-app-") as uploads:
        # gradio reads these when it is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        from .page import LAUNCH, Page

        public = options.share or options.host not in LOOPBACK
        blocks = Page(options.cache_dir, options.device).build(models, options.data, fixed=public)
        where = {"server_name": options.host, "server_port": options.port, "share": options.share}
        try:
            socket.create_server((options.host, options.port or 0)).close()  # gradio would try a hundred ports
            _, address, link = blocks.launch(**where, **LAUNCH)
        except OSError as error:
            raise LaserError(f"cannot listen on {options.host} (--port {options.port}): {error}") from error
        whom = "everybody" if public else "this machine alone"
        print(f"{link or address} is open to {whom}; Ctrl-C closes it", flush=True)
        blocks.block_thread()
