"""The slider of *A mask by hand*: moved by keys, in a browser, it shows what its page says of each epoch."""

import asyncio
import json
import re
import subprocess
import urllib.request
from operator import itemgetter

import pytest
from conftest import ROOT
from test_browser import CHROMIUM, HTML
from tornado.websocket import websocket_connect

PAGE = HTML / "runs/mask_by_hand.html"
SLIDER = ROOT / "book/walkthroughs/epochs.html"
KEYS = {"End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
SHOWN = """(() => {
  const find = name => document.querySelector('#epochs ' + name), now = find('.now');
  const at = circle => circle.getAttribute('cx') + ' ' + circle.getAttribute('cy');
  return {words: find('output').textContent, value: find('input').getAttribute('aria-valuetext'),
          at: [...document.querySelectorAll('#epochs .epoch')].map(at).indexOf(at(now)) + 1,
          passed: document.querySelectorAll('#epochs .gone').length,
          rings: document.querySelectorAll('#epochs .ring').length,
          layers: [...document.querySelectorAll('#epochs li')].map(row => row.innerText.split(/\\s*\\n\\s*/)),
          widths: [...document.querySelectorAll('#epochs li i')].map(bar => parseFloat(bar.style.width))};
})()"""
MADE_UP = {
    "epochs": [{"kept": k, "accuracy": (a + b) / 2, "accuracy_a": a, "accuracy_b": b, "layers": [k, k / 2]}
               for k, a, b in ((0.9, 0.5, 0.52), (0.31, 0.98, 0.9), (0.04, 0.91, 1.0), (0.0004, 0.73, 0.74))],
    "layers": [["first", 1200], ["last", 40]], "originals": {"all": 0.95, "restricted": 0.95}, "tested": 100,
    "weights": 1240, "chosen": {"a": 1, "b": 2, "paper": 2}}
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
needs_page = pytest.mark.skipif(not CHROMIUM or not PAGE.is_file(), reason="needs Chromium, and the book (make report)")


async def typed(socket, keys):
    """What the page shows at first, and after each of `keys`, which go to the slider."""
    async def ask(method, **parameters):
        await socket.write_message(json.dumps({"id": 1, "method": method, "params": parameters}))
        while (answer := json.loads(await socket.read_message())).get("id") != 1:
            pass
        return answer["result"]

    async def script(code):
        return (await ask("Runtime.evaluate", expression=code, returnByValue=True))["result"].get("value")

    while not await script("document.readyState === 'complete' && !!document.querySelector('#epochs output')"):
        await asyncio.sleep(0.1)
    await script("document.querySelector('#epochs input').focus()")
    found = [await script(SHOWN)]
    for key in keys:
        for kind in ("keyDown", "keyUp"):
            await ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])
        found.append(await script(SHOWN))
    return found


def shown(page, keys, folder):
    """`typed` in the file `page`."""
    async def look(port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
        return await typed(await websocket_connect(tab["webSocketDebuggerUrl"]), keys)
    browser = subprocess.Popen(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * 0.0.0.0",
         "--remote-debugging-port=0", f"--user-data-dir={folder}", page.as_uri()], stderr=subprocess.PIPE, text=True)
    try:
        port = next(found[1] for line in browser.stderr if (found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line)))
        return asyncio.run(asyncio.wait_for(look(port), 120))
    finally:
        browser.terminate()
        browser.communicate(timeout=60)


def content_of(page):
    """The search that the slider of a page goes through."""
    (content,) = re.findall(r'<script type="application/json" class="data">(.*?)</script>', page.read_text())
    return json.loads(content)


@pytest.fixture(params=[pytest.param("made up", marks=needs_chromium), pytest.param("book", marks=needs_page)])
def page(request, tmp_path):
    if request.param == "book":
        return PAGE
    path = tmp_path / "page.html"
    path.write_text(SLIDER.read_text().replace("$data", json.dumps(MADE_UP)))
    return path


def test_keys_move_the_slider_and_all_it_shows_to_the_numbers_of_an_epoch(page, tmp_path):
    content = content_of(page)
    epochs, chosen = content["epochs"], content["chosen"]
    keys = [*["ArrowRight"] * (len(epochs) // 2), "End", "ArrowRight", "ArrowLeft", "Home"]
    last = len(epochs) - 1
    stops = [*range(len(epochs) // 2 + 1), last, last, last - 1, 0]
    for at, found in zip(stops, shown(page, keys, tmp_path / "profile"), strict=True):
        epoch = epochs[at]
        kept, both, a, b = (f"{epoch[key]:.1%}" for key in ("kept", "accuracy", "accuracy_a", "accuracy_b"))
        said = (f"Epoch {at + 1} of {len(epochs)}: {kept} of {content['weights']:,} weights kept. Of "
                f"{content['tested']} test images {both} right: {a} of half a, {b} of half b.")
        by = [{"paper": "all of them"}.get(on, f"half {on}") for on, i in chosen.items() if i == at]
        assert found["words"] == said + (f" Chosen on {', '.join(by)}." if by else "")
        assert found["value"] == f"{at + 1} of {len(epochs)}"
        assert found["passed"] == at + 1
        where = [itemgetter("kept", "accuracy")(e) for e in epochs]
        assert found["at"] == where.index(where[at]) + 1  # epochs may share a place
        assert found["rings"] == len(chosen)
        assert found["widths"] == pytest.approx([100 * share for share in epoch["layers"]], abs=0.01)
        assert found["layers"] == [[f"{name}, {size:,}", f"{share:.1%}"]
                                   for (name, size), share in zip(content["layers"], epoch["layers"], strict=True)]


@needs_page
def test_the_page_shows_the_search_that_it_ran():
    content, text = content_of(PAGE), PAGE.read_text()
    number = int(re.search(r"by the search, epoch (\d+)", text)[1])
    assert content["chosen"]["paper"] + 1 == number
    chosen = content["epochs"][number - 1]
    assert re.search(rf"the delivered mask keeps {chosen['kept']:.1%}", text)
    biases = content["weights"] - sum(size for _, size in content["layers"])  # a mask covers them too; no bar has them
    assert 0 < biases < 200
    for epoch in content["epochs"]:
        in_layers = sum(share * size for share, (_, size) in zip(epoch["layers"], content["layers"], strict=True))
        assert -0.5 <= epoch["kept"] * content["weights"] - in_layers <= biases + 0.5
        assert epoch["accuracy"] == pytest.approx((epoch["accuracy_a"] + epoch["accuracy_b"]) / 2)


def test_the_slider_is_one_short_file_that_asks_for_nothing_from_elsewhere():
    text = SLIDER.read_text()
    assert len(text.splitlines()) < 200
    assert max(map(len, text.splitlines())) <= 120
    assert not re.search(r"https?:|fetch\(|import |XMLHttpRequest|src=", text)
