"""The built book in a reader's browser: on a phone's width, in light and dark, and for those who do not see it."""

import concurrent.futures
import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

HTML = ROOT / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PAGES = sorted(p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts)
pytestmark = pytest.mark.skipif(not CHROMIUM or not PAGES, reason="needs Chromium, and the book (make report)")
THEIRS = re.compile(r"(light|dark): aria-(roles|allowed-role|required-children): <div [^>]*(citation|doc-biblioentry)")
PROBE = """
<script src="AXE"></script><script>
addEventListener('load', async () => {
  await new Promise(done => setTimeout(done, 1000));  // the theme's own scripts
  const root = document.documentElement, found = {wide: root.scrollWidth - innerWidth, faults: []};
  for (const theme of ['light', 'dark']) {
    root.dataset.theme = theme;
    await new Promise(done => setTimeout(done, 500));  // colours fade
    const result = await axe.run('article.bd-article, #search-results, main');
    for (const v of result.violations)
      for (const n of v.nodes)
        found.faults.push(`${theme}: ${v.id}: ${n.html.slice(0, 120)}: ${n.failureSummary.slice(0, 200)}`);
  }
  parent.document.getElementById('found').textContent = JSON.stringify(found);
});</script>"""
FRAME = """<!doctype html><html lang="en"><title>frame</title><pre id="found"></pre>
<iframe src="PAGE" width="390" height="900"></iframe>"""


def shown(url):
    """The page as it stands after its scripts have run."""
    return subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
         "--host-resolver-rules=MAP * 0.0.0.0", "--virtual-time-budget=30000", "--dump-dom", url],
        capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the probe says about each page."""
    copy = tmp_path_factory.mktemp("book") / "html"
    shutil.copytree(HTML, copy, ignore=shutil.ignore_patterns("_sources"))
    axe = Path(importlib.util.find_spec("axe_core_python").submodule_search_locations[0]) / "axe.min.js"
    shutil.copyfile(axe, copy / "axe.min.js")
    for page in PAGES:
        path = copy / page
        path.write_text(path.read_text().replace("</body>", PROBE.replace("AXE", "../" * page.count("/") + axe.name)
                                                 + "</body>"))
        (copy / f"frame-{page.replace('/', '-')}").write_text(
            FRAME.replace("PAGE", page))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        doms = pool.map(lambda p: shown((copy / f"frame-{p.replace('/', '-')}").as_uri()), PAGES)
    return {page: json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))
            for page, dom in zip(PAGES, doms, strict=True)}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_a_phone_and_axe_finds_nothing_new(found, page):
    assert found[page]["wide"] <= 0, f"{page} is {found[page]['wide']} pixels wider than a phone"
    assert [fault for fault in found[page]["faults"] if not THEIRS.match(fault)] == []


def hits(word):
    """What the search page lists."""
    return shown(f"{(HTML / 'search.html').as_uri()}?q={word}").partition('id="search-results"')[2]


def test_search_works_from_a_file():
    assert 'href="method.html' in hits("straight")
    assert 'href="method.html' not in hits("zebrafish")
