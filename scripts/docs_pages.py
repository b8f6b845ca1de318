"""Collects the pages of the documentation in `build/docs`, from which `mkdocs build` makes the site.

Pages lie where they are read in a checkout: in `docs/`, and beside what they describe. They link to each other by
relative paths. Here each link becomes one between pages of the site, or plain text if the site has no such page.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "docs"
# Pattern in the checkout -> prefix that the site drops.
SOURCES = {
    "docs/**/*.md": "docs/",
    "docs/**/*.png": "docs/",
    "docs/**/*.svg": "docs/",
    "docs/*.css": "docs/",
    "examples/*.md": "",
    "examples/*.ipynb": "",
    "benchmarks/README.md": "",
    "experiments/**/*.md": "",
    "experiments/**/*.png": "",
    "CONTRIBUTING.md": "",
    "CHANGELOG.md": "",
}
README_MARK = "<!-- readme -->"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def collect(out: Path = OUT) -> dict[str, str]:
    """Write all pages and pictures to `out`; returns path in the checkout -> path on the site."""
    pages = {}
    for pattern, prefix in SOURCES.items():
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            pages[name] = re.sub(r"\.ipynb$", ".md", name.removeprefix(prefix))
    shutil.rmtree(out, ignore_errors=True)
    for name, page in pages.items():
        target = out / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".md":
            text = (ROOT / name).read_text(encoding="utf-8")
            text = relinked(notebook_page(text) if name.endswith(".ipynb") else text, name, page, pages)
            if README_MARK in text:
                text = text.replace(README_MARK, relinked(first_part_of_readme(), "README.md", page, pages))
            target.write_text(text, encoding="utf-8")
        else:
            shutil.copy(ROOT / name, target)
    return pages


def notebook_page(notebook: str) -> str:
    """The cells of a notebook as Markdown, without outputs."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook)["cells"]]
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells) + "\n"


def first_part_of_readme() -> str:
    """The README up to its section on training, without its title and its list of contents."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Train", 1)[0].split("\n", 1)[1]
    return "\n\n".join(part for part in text.split("\n\n") if part.count("](#") < 2)


def relinked(markdown: str, origin: str, page: str, pages: dict[str, str]) -> str:
    """`markdown`, which lies at `origin` in the checkout, with links that fit the page `page` of the site.

    Links of the README to its own sections become plain text: not all of them are on the site's first page.
    """

    def replace(match: re.Match[str]) -> str:
        image, text, link = match.groups()
        path, hash_, anchor = link.partition("#")
        if not path:
            return text if origin == "README.md" else match[0]
        if re.match(r"[a-z]+:", link):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if target == "README.md":
            target = "docs/index.md"
        if target in pages:
            relative = posixpath.relpath(pages[target], posixpath.dirname(page) or ".")
            return f"{image}[{text}]({relative}{hash_}{anchor})"
        # A link to nowhere stays, so that mkdocs reports it.
        return text if (ROOT / target).exists() else match[0]

    parts = _FENCE.split(markdown)  # odd ones are code
    return "".join(part if index % 2 else _LINK.sub(replace, part) for index, part in enumerate(parts))


if __name__ == "__main__":
    print(f"{len(collect())} pages and pictures in {OUT}")
