"""The report in a real browser: nothing is fetched, everything is seen, by keyboard and on paper too."""

import shutil
import unicodedata

import pytest
import torch
from torch import nn

from layerlens import Lens

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SIZES = {"wide": 1200, "narrow": 400}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "this test needs chromium: make test-slow installs it, or apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 38, 2))
    path = tmp_path_factory.mktemp("series") / "series.html"
    return Lens(net).report(torch.randn(2, 2, 40), 0, path, methods=["gradient"], labels=["first", "second"])


@pytest.fixture(scope="module", params=["made", "series"])
def report(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_opens_whole_and_fetches_nothing(browser, report, size, scheme):
    page = browser.new_page(viewport={"width": SIZES[size], "height": 900}, color_scheme=scheme)
    requests, troubles = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(report.as_uri())
    outside = [url for url in requests if url != report.as_uri() and not url.startswith("data:")]
    assert outside == [] and troubles == []
    images = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth])")
    assert len(images) > 4 and all(complete and width > 0 for complete, width in images)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # only figures and tables scroll
    assert page.evaluate(CONTRAST) == []
    page.close()


CONTRAST = """() => {
  const light = c => { const v = c.map(x => x / 255).map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const read = text => text.match(/[\\d.]+/g).map(Number);
  const below = element => { for (let at = element; at; at = at.parentElement) {
    const c = read(getComputedStyle(at).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = [];
  const texts = "h1,h2,h3,h4,p,dt,dd,td,th,a,label,legend,summary,code,li,b,small,figcaption";
  for (const element of document.querySelectorAll(texts)) {
    const pair = [light(read(getComputedStyle(element).color).slice(0, 3)), light(below(element).slice(0, 3))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) found.push([element.tagName, element.textContent.slice(0, 40), ratio]);
  }
  return found; }"""
"""Texts whose contrast to what lies below them is under 4.5 to 1 (WCAG 2.2, AA)."""


def test_tabs_change_by_keyboard_alone(browser, report):
    page = browser.new_page()
    page.goto(report.as_uri())
    shown = lambda: page.evaluate("[...document.querySelectorAll('.panel')].map(p => p.offsetHeight > 0)")  # noqa: E731
    assert shown() == [True, False]
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "radio":
            break
    assert page.evaluate("document.activeElement.id") == "tab-1"
    outline = page.evaluate("getComputedStyle(document.activeElement.nextElementSibling).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("ArrowRight")
    assert shown() == [False, True]
    page.keyboard.press("ArrowLeft")
    assert shown() == [True, False]
    page.close()


def test_a_reader_of_the_screen_finds_names(browser, report):
    page = browser.new_page()
    page.goto(report.as_uri())
    assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
    assert page.get_by_role("contentinfo").count() == page.get_by_role("navigation", name="Sections").count() == 1
    assert page.get_by_role("radio").count() == 2
    for picture in page.get_by_role("img").all():
        assert len(picture.get_attribute("alt")) > 40
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.close()


def test_it_prints_whole(browser, report, tmp_path):
    page = browser.new_page()
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    seen = page.evaluate(
        "[...document.querySelectorAll('.panel, details table, details dl, img')].map(e => e.offsetHeight > 0)"
    )
    assert all(seen) and len(seen) > 8
    names = page.evaluate("[...document.querySelectorAll('h2, h3, h4, tbody th')].map(e => e.textContent.trim())")
    page.pdf(path=tmp_path / "report.pdf")
    page.close()
    text = printed(tmp_path / "report.pdf")
    missing = [name for name in names if "".join(name.split()) not in text]
    assert missing == []


def printed(path):
    """The text of a PDF without white space and ligatures."""
    from pypdf import PdfReader

    text = "".join("".join(page.extract_text().split()) for page in PdfReader(path).pages)
    return unicodedata.normalize("NFKC", text)  # "ff" is one sign in a PDF
