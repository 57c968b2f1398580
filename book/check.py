"""What `jupyter-book build -W` lets pass: errors stored in notebooks, cells that never ran, pages that need a network.

    python book/check.py _build/html
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

BOOK = Path(__file__).resolve().parent


def notebook_faults(path: Path) -> list[str]:
    """Stored errors, and code cells that were not executed."""
    faults = []
    for i, cell in enumerate(nbformat.read(path, 4).cells):
        if cell.cell_type != "code":
            continue
        if cell.execution_count is None and cell.source.strip():
            faults.append(f"{path.name}: cell {i} was never executed")
        faults += [f"{path.name}: cell {i} holds an error: {o.ename}" for o in cell.outputs if o.output_type == "error"]
    return faults


class _Page(HTMLParser):
    """Collects what a page loads and links to, its ids, and images without words."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.ids: set[str] = set()
        self.wordless: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        a = {k: v or "" for k, v in attrs}
        self.ids |= {a[k] for k in ("id", "name") if k in a}
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in a:
            self.assets.append(a["src"])
        if tag == "link" and a.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon"):
            self.assets.append(a.get("href", ""))
        if tag == "img" and ("alt" not in a or re.search(r"[0-9a-f]{20}|\.(png|svg)$", a["alt"])):
            self.wordless.append(a.get("src", ""))


def page_faults(root: Path) -> list[str]:
    """Dead links within the book, anything loaded from elsewhere, images whose alt text is none or a file name."""
    pages = {}
    for path in sorted(p for p in root.rglob("*.html") if "_static" not in p.parts):
        pages[path] = _Page()
        pages[path].feed(path.read_text())
    faults = []
    for path, page in pages.items():
        name = path.relative_to(root)
        faults += [f"{name}: image without alt text: {src}" for src in page.wordless]
        faults += [f"{name}: loads {url} from elsewhere" for url in page.assets if urlsplit(url).netloc]
        for link in page.links + page.assets:
            url = urlsplit(link)
            if url.scheme or url.netloc or not (url.path or url.fragment):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.exists():
                faults.append(f"{name}: link to {link}, which does not exist")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
                faults.append(f"{name}: link to {link}, which has no such place")
    return faults


def main(html: str) -> int:
    faults = [f for path in sorted((BOOK / "runs").glob("*.ipynb")) for f in notebook_faults(path)]
    faults += page_faults(Path(html).resolve())
    print("\n".join(faults) or f"no faults in {html}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
