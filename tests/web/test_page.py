"""The page in a real browser: paint, draw, save, reproduce on the command line, cancel; no requests to other hosts."""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import small_run
from small_runs import small_dit

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402  after the skips
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from asyncdiff import DiffusionModel  # noqa: E402
from asyncdiff.__main__ import main  # noqa: E402
from asyncdiff.web.draw_request import KINDS  # noqa: E402
from asyncdiff.web.layout import DESCRIPTIONS  # noqa: E402
from asyncdiff.web.limits import Limits  # noqa: E402
from asyncdiff.web.mask_painter import decode_paint  # noqa: E402
from asyncdiff.web.model_info import ModelInfo  # noqa: E402
from asyncdiff.web.uploads import load_examples, load_photo  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
INFO = ModelInfo("small", 3, (8, 8), (2, 2), 3, 4, True)
THREADS = os.environ | {"OMP_NUM_THREADS": "1"}  # as for the command in this process


# Without a browser


def test_photos_are_fitted_to_the_model_or_refused(tmp_path):
    Image.fromarray(np.arange(16 * 32, dtype=np.uint16).astype(np.uint8).reshape(16, 32)).save(tmp_path / "a.png")
    photo = load_photo(tmp_path / "a.png", INFO, Limits())
    assert photo.shape == (3, 8, 8)
    with pytest.raises(ValueError, match="images must have at most 500 pixels, got 16x32: reduce the size first"):
        load_photo(tmp_path / "a.png", INFO, Limits(photo_pixels=500))
    truncated = (tmp_path / "a.png").read_bytes()[:-40]  # with a valid header
    for content in (b"not an image", truncated):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.png cannot be read as an image: save it as PNG or JPEG"):
            load_photo(tmp_path / "b.png", INFO, Limits())
    Image.new("RGB", (1700, 100)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="images must be at most 16 times as long as wide, got 100x1700: crop it"):
        load_photo(tmp_path / "b.png", INFO, Limits())
    (tmp_path / "b.png").unlink()
    model = DiffusionModel.assemble(small_dit(3, 3), image_size=8)
    (example,) = load_examples(str(tmp_path), model, INFO, Limits())
    assert torch.equal(example, photo)
    assert load_examples("none", model, INFO, Limits()) == []


def test_the_paint_has_one_byte_per_pixel():
    photo = torch.zeros(3, 1, 3, dtype=torch.uint8)
    assert torch.equal(decode_paint("AID/", photo), torch.tensor([[0, 128, 255]], dtype=torch.uint8))
    assert decode_paint("", photo) is None
    assert decode_paint("AID/", None) is None
    for wrong in ("AIA=", "no base64!"):
        with pytest.raises(ValueError, match="the paint must be 1x3 bytes, got"):
            decode_paint(wrong, photo)


# With a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Address of the page of a small run, served by a subprocess."""
    run = small_run(tmp_path_factory.mktemp("page") / "small")
    argv = [sys.executable, "-m", "asyncdiff", "serve", str(run), "--port", "0", "--max_pixels", "20000"]
    with subprocess.Popen(argv, cwd=ROOT, env=THREADS, stdout=subprocess.PIPE, text=True) as server:
        line = next(line for line in server.stdout if line.startswith("page: "))
        yield re.match(r"page: (http://127\.0\.0\.1:\d+/) \(Ctrl\+C stops it\)", line)[1]
        server.terminate()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of the browser's downloads."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def browser(saved):
    """A browser; each test loads the page again."""
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1500"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(saved)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as browser:
        yield browser


@pytest.fixture
def visit(browser, page):
    """New visit to the page, after which the browser must not have reported errors."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(page)
    visit = Visit(browser)
    visit.until(lambda: visit.find("canvas.photo").size["width"] > 100)
    yield visit
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


PAINT = """
const canvas = document.querySelector("canvas.photo");
return canvas.closest(".painter").dataset.paint || "";
"""


class Visit:
    """Actions of a visitor."""

    def __init__(self, browser):
        self.browser = browser

    def find(self, selector):
        """Wait for an element and return it: the server may rebuild parts of the page at any time."""
        return self.until(lambda: self.browser.find_element("css selector", selector))

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def until(self, condition, seconds=30):
        return WebDriverWait(self.browser, seconds, 0.05, [Exception]).until(lambda _: condition())

    def script(self, text):
        return self.browser.execute_script(text)

    def choose(self, kind):
        self.find(f"input[value={kind}]").click()
        title = DESCRIPTIONS[kind].split("**")[1]
        self.until(lambda: title in self.find("#description").text)
        mode = kind if KINDS[kind].painted else "none"
        self.until(lambda: self.find(".painter").get_attribute("data-mode") == mode)

    def upload(self, file):
        before = self.script("return document.querySelector('canvas.photo').toDataURL()")
        self.find("input[type=file]").send_keys(str(file))
        self.until(lambda: self.script("return document.querySelector('canvas.photo').toDataURL()") != before)

    def stroke(self, column):
        """Paint down one column of pixels, from the first row to the last."""
        canvas = self.find("canvas.photo")
        side = canvas.size["width"] / 8
        x = int((column + 0.5 - 4) * side)
        steps = ActionChains(self.browser).move_to_element_with_offset(canvas, x, int(-3.5 * side)).click_and_hold()
        steps.move_by_offset(0, int(3 * side)).move_by_offset(0, int(4 * side)).release().perform()

    def paint(self):
        """The paint that the painter would send, one byte per pixel."""
        return np.frombuffer(base64.b64decode(self.script(PAINT)), dtype=np.uint8).reshape(8, 8)

    def draw(self):
        self.find("#draw").click()

    @property
    def status(self):
        return self.find("#view .status").text

    @property
    def command(self):
        return self.find("#command textarea").get_attribute("value")

    def finished_command(self):
        """Wait for the job to finish and return its command."""
        self.until(lambda: self.status.startswith("Done") and self.command)
        return self.command

    def addresses(self):
        """URLs of all network requests."""
        events = (json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance"))
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


@pytest.mark.slow
def test_server_files_are_private_and_large_uploads_are_refused(page):
    def answer(path, data=None, **headers):
        try:
            with urlopen(Request(page + path, data, headers)) as reply:
                return reply.status
        except HTTPError as error:
            return error.code

    assert answer("") == 200
    assert answer("", Host="evil.example") == 403
    assert answer("", Origin="http://evil.example") == 403
    assert answer("", Origin=page.rstrip("/")) == 200
    assert answer(f"gradio_api/file={ROOT / 'README.md'}") == 403
    assert answer("gradio_api/file=README.md") == 403
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    for megabytes, status in ((1, 200), (21, 413)):
        body = head + bytes(megabytes * 2**20) + b"\r\n--x--\r\n"
        assert answer("gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"}) == status


@pytest.mark.slow
def test_paint_draw_save_and_reproduce_on_the_command_line(visit, page, saved, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    visit.upload(tmp_path / "photo.png")
    visit.choose("change")
    visit.all(".brush")[0].click()
    visit.stroke(4)  # whole patches: columns 4 and 5
    visit.all(".brush")[-1].click()
    visit.stroke(7)
    visit.draw()
    argv = shlex.split(visit.finished_command())
    visit.find("#view a.save[download$='.png']").click()
    visit.find("#view a.save[download$='.gif']").click()
    visit.find("#view a.save[download$='.yaml']").click()
    visit.until(lambda: sorted(f.suffix for f in saved.iterdir()) == [".gif", ".png", ".yaml"])
    (image,) = saved.glob("*.png")
    assert (pixels(image)[:, :4] == photo[:, :4]).all()
    assert (pixels(image)[:, 4:] != photo[:, 4:]).mean() > 0.5
    levels = np.repeat([[0, 0, 0, 0, 64, 64, 255, 255]], 8, 0)
    assert (pixels(argv[argv.index("--levels") + 1]) == levels).all()
    assert argv[:3] == ["python", "-m", "asyncdiff"]
    main([*argv[3:], "--output", str(tmp_path / "again")])
    number, kind, name = image.name.split("_", 2)
    assert (number.isdecimal(), kind, name) == (True, "change", "photo_seed0.png")
    assert (tmp_path / "again" / name).read_bytes() == image.read_bytes()
    assert (tmp_path / "again" / "predict.yaml").read_text() == next(saved.glob("*.yaml")).read_text()
    assert (tmp_path / "again" / "walk.gif").read_bytes() == next(saved.glob("*.gif")).read_bytes()
    elsewhere = [url for url in visit.addresses() if not url.startswith((page, "data:", "blob:"))]
    assert elsewhere == []


@pytest.mark.slow
def test_fill_in_undo_and_cancel(visit):
    visit.draw()
    visit.until(lambda: "nothing is painted yet" in visit.find("#message").text)
    visit.stroke(0)
    visit.stroke(7)
    visit.find(".undo").click()
    visit.draw()
    argv = shlex.split(visit.finished_command())
    known = pixels(argv[argv.index("--mask") + 1])
    assert (known == np.repeat([[0, 0, 255, 255, 255, 255, 255, 255]], 8, 0)).all()
    visit.choose("new")
    size = visit.find("#size input, #size textarea")
    visit.until(size.is_displayed)
    size.send_keys("96x96")
    visit.find("#settings button").click()
    steps = visit.find("#steps input[type=number]")
    visit.until(steps.is_displayed)
    steps.clear()
    steps.send_keys("250\t")
    visit.draw()
    visit.until(lambda: visit.status.startswith("Drawing") and len(visit.all("#view figure")) == 2)
    visit.find("#stop").click()
    visit.until(lambda: visit.status.startswith("Stopped at step"))
    assert int(re.search(r"\d+", visit.status)[0]) < 250
    assert visit.find("#message").text == ""
    visit.until(lambda: visit.find("#draw").is_enabled())
    assert visit.command == ""


@pytest.mark.slow
def test_each_mode_keeps_its_own_paint(visit):
    """Change keeps its levels while Fill in is used, and undo affects only the current mode."""
    visit.choose("change")
    visit.all(".brush")[0].click()
    visit.stroke(0)
    visit.stroke(3)
    changed = np.repeat([[64, 64, 64, 64, 0, 0, 0, 0]], 8, 0)
    until_painted(visit, changed)
    visit.choose("fill")  # starts with the paint of Change
    until_painted(visit, changed // 64 * 255)
    visit.stroke(7)
    until_painted(visit, np.repeat([[255, 255, 255, 255, 0, 0, 255, 255]], 8, 0))
    visit.find(".undo").click()
    until_painted(visit, changed // 64 * 255)
    visit.find(".undo").click()  # the history of Fill in is empty
    until_painted(visit, changed // 64 * 255)
    for kind in ("new", "extend", "texture", "change"):
        visit.choose(kind)
    until_painted(visit, changed)
    assert visit.find(".brush.chosen").get_attribute("data-level") == "64"
    visit.find(".undo").click()
    until_painted(visit, np.repeat([[64, 64, 0, 0, 0, 0, 0, 0]], 8, 0))
    visit.choose("fill")
    visit.find(".clear").click()
    visit.choose("change")
    visit.choose("fill")  # cleared paint stays cleared
    until_painted(visit, np.zeros((8, 8)))


@pytest.mark.slow
def test_only_one_pointer_with_its_main_button_paints(visit):
    visit.choose("fill")
    visit.script(
        "document.querySelector('canvas.photo').setPointerCapture = () => {}"
    )  # synthetic pointers cannot be captured
    assert not visit.paint().any()
    point = """
        const canvas = document.querySelector("canvas.photo"), box = canvas.getBoundingClientRect();
        const [kind, pointerId, x, button, buttons] = arguments;
        const clientX = box.left + (x + 0.5) * box.width / 8, clientY = box.top + box.height / 2;
        canvas.dispatchEvent(new PointerEvent(kind, {pointerId, clientX, clientY, button, buttons, bubbles: true}));
    """

    def dispatch(*event):
        visit.browser.execute_script(point, *event)

    dispatch("pointerdown", 1, 0, 2, 2)  # secondary button
    dispatch("pointermove", 1, 7, -1, 2)
    dispatch("pointerup", 1, 7, 2, 0)
    assert not visit.paint().any()
    dispatch("pointerdown", 1, 0, 0, 1)
    dispatch("pointerdown", 2, 7, 0, 1)  # a second finger
    dispatch("pointermove", 2, 6, -1, 1)
    dispatch("pointermove", 1, 1, -1, 0)  # the release was lost
    dispatch("pointermove", 1, 4, -1, 0)
    visit.until(lambda: visit.paint().any())
    assert not visit.paint()[:, 2:].any()


@pytest.mark.slow
def test_painting_with_the_keyboard(visit):
    canvas = visit.find("canvas.photo")
    visit.script("document.querySelector('canvas.photo').focus()")
    canvas.send_keys(Keys.ARROW_DOWN)  # to the first patch
    canvas.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.SPACE)
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[2:4, 4:6] = 255
    until_painted(visit, expected)
    canvas.send_keys(*[Keys.ARROW_RIGHT] * 9, Keys.SPACE)  # the cursor stays inside
    expected[2:4, 6:8] = 255
    until_painted(visit, expected)


@pytest.mark.slow
def test_a_result_is_reused_at_its_own_size_and_images_are_removed_and_picked(visit):
    visit.choose("extend")
    box = visit.find("input[aria-label*='right']")
    visit.until(box.is_displayed)
    box.clear()
    box.send_keys("4\t")
    visit.draw()
    visit.finished_command()
    visit.find("#reuse").click()
    visit.until(lambda: "8x12 pixels, but the model was trained on 8x8" in visit.find("#note").text)
    canvas = visit.find("canvas.photo")
    visit.until(lambda: abs(2 * canvas.size["width"] - 3 * canvas.size["height"]) < 8)  # tolerance for the border
    visit.choose("texture")
    visit.find("#remove").click()
    visit.until(lambda: visit.find(".painter.bare"))
    visit.find("button.example").click()
    visit.until(lambda: not visit.all(".painter.bare"))


@pytest.mark.slow
def test_notes_and_errors_about_uploads_are_shown(visit, tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    visit.find("input[type=file]").send_keys(str(tmp_path / "notes.txt"))
    visit.until(lambda: "notes.txt cannot be read as an image" in visit.find("#note .failed").text)
    clear = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    visit.upload(tmp_path / "clear.png")
    visit.until(lambda: "clear.png: 63 transparent pixels are blended with white" in visit.find("#note").text)
    assert not visit.all("#note .failed")
    Image.fromarray(clear[..., :3]).save(tmp_path / "opaque.png")
    visit.upload(tmp_path / "opaque.png")
    visit.until(lambda: not visit.find("#note").text)


def until_painted(visit, expected):
    visit.until(lambda: (visit.paint() == expected).all())
