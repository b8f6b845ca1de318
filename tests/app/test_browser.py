"""The page in a real browser: Debian's chromium, driven by playwright, against `laser-hf app` in an empty folder.

`APP_PICTURES=docs/figures` as environment variable renews the pictures of the documentation, with the encoder that
`APP_TUNED=outputs/demo` names.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file

from laser_hf.app.search import Collection
from laser_hf.demo import ENCODER_DIR, SPEECH_DIR

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
pytest.importorskip("gradio", reason="the page needs gradio, of the extra app")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -r requirements-dev.txt")

HELDOUT = SPEECH_DIR / "heldout"
PICTURES = Path(os.environ.get("APP_PICTURES", "/nowhere"))
# Counts what is played, in whichever element the player keeps.
PLAYED = """
window.played = [];
const play = HTMLMediaElement.prototype.play;
HTMLMediaElement.prototype.play = function () { window.played.push(this); return play.apply(this); };
"""

# Recording, seconds, score and whether the word is said, after the whole row.
ROWS = r"""grid => [...grid.innerText.matchAll(/(\S+\.opus)\s+(\S+ – \S+)\s+(\S+)\s+(yes|no)/g)].map(row => [...row])"""


def address_of(process: subprocess.Popen) -> str:
    for line in process.stdout:
        if found := re.match(r"(http\S+) is open to this machine alone", line):
            return found[1]
    raise AssertionError(f"the program ended: {process.wait()}")


def changed_copy(where: Path) -> None:
    """Leave an encoder where the demo leaves its own: the shipped one, the last layer's weights a little changed."""
    made = os.environ.get("APP_TUNED")  # the demo's own, for the pictures
    shutil.copytree(made or ENCODER_DIR, where)
    if not made:
        weights, generator = load_file(where / "model.safetensors"), torch.Generator().manual_seed(0)
        for name in [name for name in weights if name.startswith("encoder.layers.3.") and weights[name].ndim == 2]:
            noise = torch.randn(weights[name].shape, generator=generator)
            weights[name] += (0.3 * weights[name].float().std() * noise).to(weights[name].dtype)
        save_file(weights, where / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Address, process and uploads' folder of a page that shows the shipped encoder beside a changed copy of it."""
    folder = tmp_path_factory.mktemp("empty")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    start = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "text": True}
    changed_copy(folder / "outputs" / "demo")
    command = [sys.executable, "-m", "laser_hf", "app", "--cache_dir", "cache"]
    with subprocess.Popen(command, **start) as process:
        address = address_of(process)
        (uploads,) = folder.glob("laser-app-*")
        yield address, process, uploads
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert not uploads.exists()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(app, browser):
    """Opens the page in a window of its own; nothing may be asked of another host, and no error may happen."""
    opened = []

    def open_page(**window):
        context = browser.new_context(**(window or {"viewport": {"width": 1100, "height": 900}}))
        page = context.new_page()
        page.add_init_script(PLAYED)
        page.set_default_timeout(60_000)
        asked, faults = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(app[0])
        page.get_by_role("button", name="Search").wait_for()
        opened.append((context, asked, faults))
        return page

    yield open_page
    for context, asked, faults in opened:
        context.close()
        assert [url for url in asked if not url.startswith((app[0], "data:", "blob:"))] == []
        assert faults == []


def choose(page, label: str, text: str) -> None:
    box = page.get_by_label(label)
    box.click()
    box.fill("")
    box.press_sequentially(text)
    page.get_by_role("option", name=text, exact=True).click()


def search(page, word: str) -> list[list[list[str]]]:
    """Picks a word on a fresh page, searches, and returns the rows of both tables."""
    choose(page, "A word of these recordings", word)
    page.get_by_role("button", name="Play").first.wait_for()
    page.get_by_role("button", name="Search").click()
    page.get_by_text("s on both sides").wait_for()  # the best hit
    page.wait_for_function(f"({ROWS})(document.querySelectorAll('[role=grid]')[1]).length == 10", polling=200)
    return [rows(page, table) for table in (0, 1)]


def rows(page, table: int) -> list[list[str]]:
    return page.get_by_role("grid").nth(table).evaluate(ROWS)


def picture(page, name: str, **how) -> None:
    if PICTURES.is_dir():
        page.evaluate("document.activeElement.blur()")
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)  # until moving parts rest
        page.screenshot(path=PICTURES / name, **how)


def test_words_are_found(open_page, app):
    """The first hit holds the word, the lists of the two encoders differ, and a hit can be heard and seen.

    `test_search.py` searches ten words without a browser.
    """
    collection = Collection(HELDOUT)
    words = [pick for pick in collection.picks if len(pick.split()[0]) >= 6 and pick.endswith("(voice v17)")][:2]
    page, differ = open_page(), 0
    assert page.get_by_label("Encoder").input_value() == "shipped encoder"
    assert page.get_by_label("Beside it").input_value() == "outputs/demo"
    for pick in words:
        if differ:
            page.reload()
            page.get_by_role("button", name="Search").wait_for()
        first, second = search(page, pick)
        holding = {one.utterance for _, one in collection.words if one.label == pick.split()[0]}
        assert first[0][1].removesuffix(".opus") in holding, pick
        assert first[0][4] == "yes"
        assert len(first) == len(second) == 10
        assert not any(row[1].startswith("v17") for row in first + second)
        differ += first != second
    assert differ == len(words) == 2

    page.get_by_role("grid").nth(1).get_by_text(second[3][1]).first.click()
    heard = page.get_by_text(f"{second[3][1]}, ")
    heard.wait_for()
    assert second[3][2].split()[0] in heard.inner_text()
    assert page.locator("img").first.evaluate("image => image.naturalWidth") > 500
    page.get_by_role("button", name="Play").last.click()
    page.wait_for_function("window.played.length && window.played.at(-1).currentTime > 0.2", polling=200)
    assert page.evaluate("window.played.at(-1).duration") > 0.5
    picture(page, "app.png", full_page=True)


def test_what_is_no_audio_is_refused_with_a_sentence(open_page, app, tmp_path):
    page = open_page()
    (tmp_path / "words.wav").write_text("This is text.")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "words.wav")
    page.get_by_text("or one of your own").wait_for()
    page.locator("audio").first.wait_for(state="attached")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("This recording cannot be used: words.wav: Format not recognised").wait_for()
    assert "Traceback" not in page.content()
    assert list(app[2].rglob("words.wav"))  # deleted with the folder, see the fixture


def test_a_large_upload_is_refused(browser, app):
    file = {"name": "large.wav", "mimeType": "audio/wav", "buffer": bytes(11 * 2**20)}
    context = browser.new_context()
    assert context.request.post(f"{app[0]}gradio_api/upload", multipart={"files": file}).status == 413
    context.close()
    assert not list(app[2].rglob("large.wav"))


def test_two_recordings_are_compared(open_page):
    page = open_page()
    page.get_by_role("tab", name="Compare").click()
    panel = page.get_by_role("tabpanel").last
    for voice in ("v17", "v20"):
        panel.locator("input[type=file]").first.set_input_files(HELDOUT / voice / "s1" / f"{voice}-s1-0033.opus")
        panel.get_by_role("button", name="Play").nth(int(voice == "v20")).wait_for()
    panel.get_by_role("button", name="Compare").click()
    panel.locator("img").first.wait_for()
    assert panel.locator("img").first.evaluate("image => image.naturalHeight") > 400


def test_a_phone(open_page):
    window = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    page = open_page(**window)
    first, _ = search(page, "kitchen (voice v17)")
    assert first[0][4] == "yes"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    grid = page.get_by_role("grid").first
    grid.get_by_text(first[1][1]).first.tap()
    page.get_by_text(f"{first[1][1]}, ").wait_for()
    for shown in (grid, page.locator("img").first, page.get_by_role("button", name="Search")):
        box = shown.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    picture(page, "app_phone.png", full_page=True)


def test_it_listens_on_this_machine_alone(app):
    """The kernel's table of listening sockets: 127.0.0.1 is written 0100007F."""
    port = f"{int(app[0].rstrip('/').rsplit(':')[-1]):04X}"
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert [place for place in listening if place.endswith(f":{port}")] == [f"0100007F:{port}"]
    assert f":{port} " not in Path("/proc/net/tcp6").read_text()
