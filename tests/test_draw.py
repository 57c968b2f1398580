"""*Draw it*: what its own script computes, in a browser, against torch; and that it answers hand and keyboard."""

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
  window.requestAnimationFrame = work => setTimeout(work, 16);  // where nobody looks there may be no frames
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
    """Code that has the test digits of the problem in `images`."""
    pixels = base64.b64encode(made.task.test.images.numpy().tobytes()).decode()
    return f"const all = bytes('{pixels}'), images = [];" + (
        "for (let i = 0; i < all.length; i += PIXELS) images.push([...all.subarray(i, i + PIXELS)].map(v => v / 255));")


@needs_page
def test_every_answer_at_every_point_is_that_of_torch(record, made, tmp_path):
    found = probed(tmp_path, images_of(made) + """
        const points = Number(find('slider').max) + 1;
        return [...Array(points).keys()].map(p => images.map(image => app.answers(image, p)));""")
    x, y = made.task.test.images.float() / 255, made.task.test.labels
    assert len(x) == 300
    rounded = copy.deepcopy(made.model)
    rounded.load_state_dict({name: t.half().float() for name, t in made.model.state_dict().items()})
    start = {name: torch.ones_like(mask) for name, mask in made.found.masks.items()}, made.task.head()
    ends = [(made.found.picks[pick].masks, made.found.module(pick)[1])
            for pick in (f"{point['alpha']:g}" for point in record.results["front"])]
    stated = [record.results["accuracy"]["original_restricted"], *(p["accuracy"] for p in record.results["front"])]
    assert len(found) == 1 + len(ends) >= 4
    for answers, (mask, head), accuracy in zip(found, [start, *ends], stated, strict=True):
        ten, two = (torch.tensor([answer[key] for answer in answers]) for key in ("original", "two"))
        left = apply_masks(copy.deepcopy(rounded), mask).eval()
        with evaluate.measuring():
            for logits, wanted in ((ten, rounded(x)), (two, head(left(x)))):
                torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-3)
                assert torch.equal(logits.argmax(1), wanted.argmax(1))
            torch.testing.assert_close(ten, made.model(x), rtol=0, atol=2e-2)  # before they were rounded
        assert float((two.argmax(1) == y).float().mean()) == pytest.approx(accuracy, abs=0.004)
        assert {answer["work"] for answer in answers} == {cost.flops(left, x[:1]).sparse}


@needs_page
def test_a_drawing_of_any_size_anywhere_is_seen_as_the_test_digits_are(made, tmp_path):
    found = probed(tmp_path, images_of(made) + """
        const ink = new Float32Array(280 * 280);
        return images.map((image, i) => {
          const size = 4 + i % 7, free = 280 - 28 * size, left = 17 * i % (free + 1), top = 29 * i % (free + 1);
          ink.fill(0);
          for (let row = 0; row < 28 * size; row++)
            for (let column = 0; column < 28 * size; column++)
              ink[(top + row) * 280 + left + column] = image[Math.floor(row / size) * 28 + Math.floor(column / size)];
          return [...app.see(ink)];
        });""")
    x = made.task.test.images.float() / 255
    seen = torch.tensor(found).reshape(x.shape)
    same = (seen - x).abs().amax((1, 2, 3)) < 1e-6  # to the pixel, but where its centre of mass lies between two
    assert float(same.float().mean()) > 0.98


@needs_page
def test_hand_and_keyboard_are_answered_and_told(tmp_path):
    found = probed(tmp_path, """
        const board = find('board'), place = board.getBoundingClientRect(), told = [];
        const pointer = (target, type, x, y) => target.dispatchEvent(new PointerEvent(type, {
          clientX: place.left + x, clientY: place.top + y, isPrimary: true, button: 0, bubbles: true}));
        const tell = async () => { await later(2000); told.push(find('said').textContent); };
        await tell();
        find('clear').click();
        await tell();
        pointer(board, 'pointerdown', 140, 50);
        for (let y = 60; y <= 230; y += 10) pointer(window, 'pointermove', 140, y);
        pointer(window, 'pointerup', 140, 230);
        pointer(window, 'pointermove', 20, 20);  // the pen is up
        await tell();
        find('plain').children[9].click();
        await tell();
        find('slider').value = find('slider').max;
        find('slider').dispatchEvent(new Event('input'));
        await tell();
        return {told, out: [...app.querySelectorAll('.filters i')].filter(i => i.style.opacity === '0').length,
                value: find('slider').getAttribute('aria-valuetext')};""")
    start, empty, one, eight, last = found["told"]
    assert start.startswith("The original says a 3,")
    assert empty.startswith("The board is empty. Weights kept: 100% of 65,162.")
    assert one.startswith("The original says a 1,")
    assert "What is left says not an 8," in one
    assert eight.startswith("The original says an 8,")
    assert last.startswith("The original says an 8,")
    assert re.search(r"Weights kept: \d\.\d% of 65,162\. Right, of test digits: \d\d\.\d% of 300\. Multiply-adds", last)
    assert found["value"] in last.replace("65,162", "the weights")
    assert found["out"] > 100


@needs_page
def test_the_weights_are_light(made):
    (content,) = re.findall(r'<script type="application/json" class="data">(.*?)</script>', PAGE.read_text())
    assert len(content) < 400_000
    assert json.loads(content)["sizes"] == [[name, p.numel()] for name, p in made.model.named_parameters()]


def test_the_script_is_short_and_asks_for_nothing_from_elsewhere():
    script = (ROOT / "book/pages/draw.js").read_text()
    assert len(script.splitlines()) < 200
    assert max(map(len, script.splitlines())) <= 120
    both = script + (ROOT / "book/pages/draw.html").read_text()
    assert not re.search(r"https?:|fetch\(|import |XMLHttpRequest|src=", both)
