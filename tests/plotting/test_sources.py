"""An answer and its sources as colored text, and as HTML in which each part of the answer opens."""

import dataclasses
import re

import pytest
import torch

from layerlens import plotting
from layerlens.errors import OptionError, PlotError
from tests.results.examples import answer

HARD = 'A <b> & "c".\n\nIt\'s 北京 👍🏽. Who?'


def hard():
    spans = ((0, 12), (14, len(HARD) - 5), (len(HARD) - 4, len(HARD)))
    values = torch.tensor([[2.0, -1.0, 0.0], [0.5, 3.0, -4.0]]).double()
    return dataclasses.replace(
        answer(), prompt=HARD, spans=spans, columns=("0", "1", "2"), values=values, error=None, answer="<i> no. Yes.",
        part_spans=((0, 7), (7, 12)),
    )  # fmt: skip


def test_every_word_has_the_color_of_its_source():
    plot = plotting.sources(hard(), part=1)
    assert plot.data["values"].tolist() == [0.5, 3.0, -4.0]
    assert [text for text in plot.data["tokens"] if text != "↵"][:5] == ["A", "<b>", "&", '"c".', "It's"]
    total = hard().plot(width="column")
    assert total.data["values"].tolist() == [2.5, 2.0, -4.0]
    with pytest.raises(OptionError, match="2 parts"):
        plotting.sources(hard(), part=2)


def test_weak_sources_of_a_long_prompt_are_dots():
    few = plotting.sources(hard(), part=1, count=3).data["tokens"]
    assert few == ["…", "Who?"]


def test_the_page_is_escaped_and_has_no_script():
    fragment = plotting.sources_html(hard())
    assert "<script" not in fragment and "<b> &" not in fragment and "<i>" not in fragment
    assert "A &lt;b&gt; &amp; &quot;c&quot;." in fragment and "&lt;i&gt; no." in fragment
    assert "source 2: −4 nats" in fragment and "text-decoration:underline" in fragment
    assert fragment == plotting.sources_html(hard())
    assert fragment.count('<details name="') == 2 and fragment.count(" open>") == 1
    with_errors = plotting.sources_html(answer())
    assert "4.2 ± 0.4 nats" in with_errors
    one = plotting.sources_html(hard(), count=1)
    assert one.count('<details name="') == 1 and "the first 1 of 2 parts" in one


def test_a_source_whose_interval_includes_0_is_pale_with_a_dotted_edge():
    error = torch.tensor([[1.0, 1.0, 0.0], [0.4, 1.0, 1.0]]).double()  # 1.645 times: of .5 and of -1 it includes 0
    unsure = dataclasses.replace(hard(), error=error)
    fragment = plotting.sources_html(unsure)
    dotted = re.findall(
        r'<span style="background:rgba\([\d,]+,([\d.]+)\)[^"]*dotted[^"]*" title="source (\d)', fragment
    )
    assert [(source, float(opacity)) for opacity, source in dotted] == [  # a quarter of .55 times the share of 4
        ("1", pytest.approx(0.55 / 4 / 4, abs=1e-3)), ("2", 0.0), ("0", pytest.approx(0.55 / 8 / 4, abs=1e-3))
    ]  # fmt: skip
    assert "pale, dotted edge: 90 % interval includes 0" in fragment
    for plain in (plotting.sources_html(unsure, interval=None), plotting.sources_html(hard())):
        assert "dotted" not in plain


def test_a_page_without_numbers_is_refused(tmp_path):
    for values, text in ((torch.zeros(2, 3).double(), "zero everywhere"), (torch.full((2, 3), torch.nan), "NaN")):
        with pytest.raises(PlotError, match=text):
            plotting.sources_html(dataclasses.replace(hard(), values=values))
    page = hard().to_html(tmp_path / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "light dark" in page and "<script" not in page


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_part_opens_by_pointer_and_by_key(browser, tmp_path, scheme):
    path = hard().to_html(tmp_path / "page.html")
    page = browser.new_page(color_scheme=scheme, java_script_enabled=False)
    page.goto(path.as_uri())
    shown = page.locator("details > div")
    assert [shown.nth(k).is_visible() for k in range(2)] == [True, False]
    page.locator("summary").nth(1).click()
    assert [shown.nth(k).is_visible() for k in range(2)] == [False, True]
    page.locator("summary").nth(0).focus()
    page.keyboard.press("Enter")
    assert [shown.nth(k).is_visible() for k in range(2)] == [True, False]
    titles = [shown.nth(1).locator("span").nth(k).get_attribute("title") for k in range(3)]
    assert titles == ["source 0: 0.5 nats", "source 1: 3 nats", "source 2: −4 nats"]
    assert re.sub(r"\s", "", shown.nth(0).inner_text()) == re.sub(r"\s", "", HARD)
    page.close()
