"""The viewer of a patient: one offline page, and what a reader does with it in headless Chromium."""

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mslib.show import write_viewer
from mslib.study import StudyError

EVIL = 'DATA of LINK: <script>alert("sub-001")</script><img src=x onerror=alert(1)>'
LAYERS = [("block4_conv1", 6, 5), ("block5_conv1", 3, 2), ("block5_pool", 1, 1)]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--no-first-run", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--remote-debugging-port=0", "--remote-allow-origins=*",
         "--window-size=900,600")


class Page(HTMLParser):
    """Addresses of a page, as a browser would read them, and its text."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "action", "data", "srcset")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A ball of 60 mm with a lesion, two scans, maps of three layers, the first hot in the lesion."""
    folder, affine = tmp_path_factory.mktemp("images"), np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -46
    place = np.moveaxis(np.indices((24, 24, 24)), 0, -1) * 4.0 - 46
    ball, lesion = (np.linalg.norm(place, axis=-1) < 30), np.linalg.norm(place - [10, 10, 6], axis=-1) < 9
    heat = np.stack([lesion, ball & ~lesion, 0 * ball], -1).astype(np.float32)
    for name, data in {"FLAIR": ball + lesion, "T1w": 2 * ball - lesion, "lesions": lesion, "gradcam": heat,
                       "layercam": heat - 0.5, "short": heat[..., :2], "blank": 0 * ball}.items():
        nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / f"{name}.nii.gz")
    return folder


def written(images, path, **changes):
    return write_viewer(path, **{
        "scans": {name: images / f"{name}.nii.gz" for name in ("FLAIR", "T1w")}, "layers": LAYERS,
        "maps": {"Grad-CAM": images / "gradcam.nii.gz", "LayerCAM": images / "layercam.nii.gz"},
        "lesions": images / "lesions.nii.gz", "first": "block5_conv1", "title": EVIL, "note": EVIL,
        "slices": [(z, f"Slice {z}: {EVIL}") for z in range(-40, 41, 4)]} | changes)


def test_one_offline_page_in_which_text_stays_text(images, tmp_path):
    made = [written(images, tmp_path / f"{i}.html") for i in range(2)]
    text = made[0].read_text(encoding="utf-8")
    assert text == made[1].read_text(encoding="utf-8") and len(text) < 3_000_000
    page = Page(text)
    assert page.addresses == ["../index.html"] and "link" not in page.tags and "img" not in page.tags
    assert EVIL not in text and "<script>alert" not in text
    assert text.count("DATA of LINK: &lt;script&gt;") == 3, "title twice and note, as they are"
    data = json.loads(re.search('id="data">(.+)</script>', text)[1])
    assert [layer["name"] for layer in data["layers"]] == [name for name, *_ in LAYERS]
    np.testing.assert_allclose(data["start"], [10, 10, 6], atol=4), "it opens at the lesion"


@pytest.mark.parametrize("changes,message", [
    ({"maps": {"Grad-CAM": "short.nii.gz"}}, r"short\.nii\.gz: must hold 3 volumes, one per layer \(got 2\)"),
    ({"maps": {"Grad-CAM": "FLAIR.nii.gz"}}, r"FLAIR\.nii\.gz: must be a 4-D image of finite values \(got 3-D\)"),
    ({"scans": {"FLAIR": "blank.nii.gz"}}, r"blank\.nii\.gz: is blank"),
    ({"scans": {"FLAIR": "absent.nii.gz"}}, r"absent\.nii\.gz: cannot be read as NIfTI")])
def test_what_cannot_be_shown_is_refused(images, tmp_path, changes, message):
    changes = {key: {name: images / file for name, file in files.items()} for key, files in changes.items()}
    with pytest.raises(StudyError, match=message):
        written(images, tmp_path / "page.html", **changes)


class Browser:
    """Headless Chromium over its DevTools protocol; keeps errors and addresses that were asked for."""

    def __init__(self, folder):
        websocket = pytest.importorskip("websocket")
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = folder / "DevToolsActivePort"
        wait_for(port.is_file)
        wait_for(lambda: len(port.read_text().splitlines()) > 1)
        number, path = port.read_text().split()
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{number}{path}", timeout=120)
        self.ids, self.session, self.faults, self.asked = itertools.count(1), None, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters} | (
            {"sessionId": self.session} if self.session else {})))
        while True:
            told = json.loads(self.socket.recv())
            if told.get("method") == "Runtime.exceptionThrown" or (
                    told.get("method") == "Runtime.consoleAPICalled" and told["params"]["type"] == "error"):
                self.faults.append(told["params"])
            if told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]

    def run(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                         awaitPromise=True)["result"].get("value")

    def picture(self):
        """The three planes as RGB, (H, W, 3)."""
        shot = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        box = self.run("(() => { const b = document.getElementById('frame').getBoundingClientRect();"
                       " return [b.top, b.bottom]; })()")
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), np.float32)[slice(*map(round, box))]


def wait_for(ready, seconds=180):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_reader_moves_through_the_layers(images, tmp_path):
    """Layer, method, scan and outline change what is drawn; no error, and nothing is fetched."""
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=written(images, tmp_path / "page.html").as_uri())
        wait_for(lambda: browser.run("document.body && document.body.dataset.ready") == "1")

        def after(change):
            """Picture after a change of a control; two frames later, so that it is drawn."""
            browser.run(f"(() => {{ {change} }})(); new Promise(r => requestAnimationFrame(() => "
                        "requestAnimationFrame(() => setTimeout(r, 300))))")
            return browser.picture()

        def move(control, value):
            return after(f"const one = document.getElementById('{control}'); one.value = {json.dumps(value)};"
                         "one.dispatchEvent(new Event('input'))")

        label = "document.getElementById('name').textContent"
        assert browser.run(label) == "block5_conv1: 3 × 2 cells"
        around, inside = after(""), move("layer", 0)
        assert browser.run(label) == "block4_conv1: 6 × 5 cells"
        assert "layer=block4_conv1" in browser.run("location.hash")
        assert browser.run("document.getElementById('slice').textContent").startswith(f"Slice 4: {EVIL}")

        def red(picture):
            """Pixels that are hot rather than grey."""
            return int((picture[..., 0] - picture[..., 2] > 40).sum())

        blank = move("layer", 2)
        assert red(around) > red(inside) > 10 * max(red(blank), 1), "ball without lesion, lesion, nothing"
        lines = int((blank[..., 2] - blank[..., 0] > 80).sum())
        unlined = after("document.getElementById('lesions').click()")
        assert lines > 20 > int((unlined[..., 2] - unlined[..., 0] > 80).sum())
        t1w = move("scan", "T1w")
        assert np.abs(t1w - unlined).max() > 60
        assert red(move("method", "LayerCAM")) == red(t1w), "a blank layer of either method"
        assert browser.faults == [] and all(url.startswith(("file:", "blob:", "data:")) for url in browser.asked)
    finally:
        browser.process.kill()
        browser.process.wait()
