"""The report in a real browser: nothing is fetched, everything is seen, by keyboard and on paper too."""

import unicodedata

import pytest
import torch
from torch import nn

from layerlens import Lens
from layerlens.demo import gallery as demo
from layerlens.demo.demo_subject import subject

from .test_report import Sentiment, Words

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SIZES = {"wide": 1200, "narrow": 400}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 38, 2))
    path = tmp_path_factory.mktemp("series") / "series.html"
    return Lens(net).report(torch.randn(2, 2, 40), 0, path, methods=["gradient"], labels=["first", "second"])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.html"
    lens = Lens(Sentiment(), tokenizer=Words(), class_names=["against", "for"])
    return lens.report(["<b>not</b> bad film", "good film"], "for", path, methods=["leave_one_out"])


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """The page of the demo."""
    chosen = subject("embedded")
    title = next(iter(chosen.pictures))
    return demo.write(demo.make(chosen, {title: chosen.pictures[title]}), tmp_path_factory.mktemp("gallery"))[0]


@pytest.fixture(scope="module", params=["made", "series", "text"])
def report(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["made", "series", "text", "gallery"])
def test_it_opens_whole_and_fetches_nothing(browser, request, kind, size, scheme):
    report = request.getfixturevalue(kind)
    page = browser.new_page(viewport={"width": SIZES[size], "height": 900}, color_scheme=scheme)
    requests, troubles = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(report.as_uri())
    outside = [url for url in requests if url != report.as_uri() and not url.startswith("data:")]
    assert outside == [] and troubles == []
    images = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth])")
    assert len(images) >= 4 and all(complete and width > 0 for complete, width in images)
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


def test_tabs_change_by_mouse(browser, report):
    page = browser.new_page()
    page.goto(report.as_uri())
    shown = lambda: page.evaluate("[...document.querySelectorAll('.panel')].map(p => p.offsetHeight > 0)")  # noqa: E731
    for tab, expected in (("tab-2", [False, True]), ("tab-1", [True, False])):
        page.click(f"#{tab}")
        assert shown() == expected and page.evaluate(f"document.getElementById('{tab}').checked")
    page.click("text=Settings of the methods >> visible=true")
    assert page.evaluate("document.querySelector('#sample-1 details').open")
    page.close()


def test_of_very_many_samples_the_list_scrolls_and_the_page_stays_short(browser, tmp_path):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    path = Lens(net).report(
        torch.randn(20, 3), 0, tmp_path / "many.html", labels=[f"a customer with the number {k}" for k in range(20)],
        methods=["gradient"], profiles=[], controls=False,
    )  # fmt: skip
    page = browser.new_page(viewport={"width": SIZES["narrow"], "height": 900})
    page.goto(path.as_uri())
    assert page.evaluate("document.querySelector('.tabs').offsetHeight") < 300
    page.focus("#tab-1")
    page.keyboard.press("ArrowLeft")  # from the first round to the last, which is brought into view
    inside = """() => { const [label, list] = ["label[for=tab-20]", ".tabs"].map(
      name => document.querySelector(name).getBoundingClientRect());
      return label.top >= list.top - 1 && label.bottom <= list.bottom + 1; }"""
    page.wait_for_timeout(200)
    assert page.evaluate("document.getElementById('sample-20').offsetHeight > 0") and page.evaluate(inside)
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
    names = page.evaluate(
        "[...document.querySelectorAll('h2, h3, h4, tbody th, .tokens li')].map(e => e.textContent.trim())"
    )
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
