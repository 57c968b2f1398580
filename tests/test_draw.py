"""*Draw it*: what the page's own script computes, in a browser, against torch; and that it answers hand and keyboard."""

import base64
import copy
import html
import json
import re

import pytest
import report
import torch
from conftest import ROOT
from test_browser import CHROMIUM, HTML, shown

from seamlib import evaluate, records
from seamlib.masks import apply_masks
from seamlib.restore import restore
from seamlib.ship import cost

PAGE = HTML / "runs/draw.html"
needs_page = pytest.mark.skipif(not CHROMIUM or not PAGE.is_file(), reason="needs Chromium, and the book (make report)")
PROBE = """<pre id="found"></pre><script>addEventListener('load', async () => {
  const app = document.getElementById('draw'), find = name => app.querySelector('.' + name), PIXELS = 784;
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const later = ms => new Promise(done => setTimeout(done, ms));
  document.getElementById('found').textContent = JSON.stringify(await (async () => {CODE})());
});</script>"""


def probed(tmp_path, code):
    """What `code`, the body of a function, returns in the page, which stands alone in its folder."""
    path = tmp_path / "draw.html"
    path.write_text(PAGE.read_text().replace("</body>", PROBE.replace("CODE", code) + "</body>"))
    return json.loads(html.unescape(re.search(r'<pre id="found">(.+?)</pre>', shown(path.as_uri()), re.DOTALL)[1]))


@pytest.fixture(scope="module")
def record():
    (found,) = [r for r in report.of_preset("quick", "direct_binary") if r.results["front"]]
    return found


@pytest.fixture(scope="module")
def made(record):
    return restore(record, records.tensors_of(record, records.find(record.stem, reversed(report.ROOTS))), ROOT)


def images_of(made):
    return "const all = bytes('%s'), images = [];" % base64.b64encode(made.task.test.images.numpy().tobytes()).decode() + (
        "for (let i = 0; i < all.length; i += PIXELS) images.push([...all.subarray(i, i + PIXELS)].map(v => v / 255));")


@needs_page
def test_every_answer_at_every_point_is_that_of_torch(record, made, tmp_path):
    found = probed(tmp_path, images_of(made) + """
        const points = Number(find('slider').max) + 1;
        return [...Array(points).keys()].map(p => images.map(image => app.answers(image, p)));""")
    x, y = made.task.test.images.float() / 255, made.task.test.labels
    assert len(x) == 300
    rounded, exact = copy.deepcopy(made.model), made.model
    rounded.load_state_dict({name: t.half().float() for name, t in made.model.state_dict().items()})
    start = {name: torch.ones_like(mask) for name, mask in made.found.masks.items()}, made.task.head()
    ends = [(made.found.picks[pick].masks, made.found.module(pick)[1])
            for pick in (f"{point['alpha']:g}" for point in record.results["front"])]
    assert len(found) == 1 + len(ends) >= 4
    for answers, (mask, head) in zip(found, [start, *ends], strict=True):
        ten, two = (torch.tensor([a[key] for a in answers]) for key in ("original", "two"))
        with evaluate.measuring():
            torch.testing.assert_close(ten, rounded(x), rtol=0, atol=1e-3)
            left = apply_masks(copy.deepcopy(rounded), mask).eval()
            torch.testing.assert_close(two, head(left(x)), rtol=0, atol=1e-3)
            whole = head(apply_masks(copy.deepcopy(exact), mask)(x))
            print((ten-exact(x)).abs().max(), (two-whole).abs().max(), (two.argmax(1) != whole.argmax(1)).sum(), (ten.argmax(1) != exact(x).argmax(1)).sum(), (ten-rounded(x)).abs().max(), (two-head(left(x))).abs().max(), (two.argmax(1)==y).float().mean(), answers[0]['work'], cost.flops(left, x[:1]).sparse)
