"""Explorers of trained models, as large as they are promised to be, looked at with the mouse."""

from pathlib import Path

import pytest

import layerlens
from layerlens import Lens

from .conftest import last_number, layer_named, read, reading, same, tab

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

TOKENS = 2000
PAGES = Path(layerlens.__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2 with its tokenizer."""
    from tests.real_models import smollm2

    return smollm2()


@pytest.fixture(scope="module")
def long_text(smollm2):
    """The lens, the token ids, and their explorer."""
    model, tokenizer = smollm2
    pages = " ".join((PAGES / name).read_text() for name in ("relevance.md", "saliency.md", "circuits.md"))
    ids = tokenizer(pages, return_tensors="pt")["input_ids"][:, :TOKENS]
    lens = Lens(model, tokenizer=tokenizer)
    return lens, ids, lens.explore(ids)


@pytest.fixture(scope="module")
def capitals(smollm2):
    """The lens, the text, and its explorer."""
    model, tokenizer = smollm2
    lens, text = Lens(model, tokenizer=tokenizer), "The capital of France is"
    return lens, text, lens.explore(text, targets=[" Paris", " Rome"])


def test_two_thousand_tokens_of_smollm2(long_text, opened):
    page, explorer = opened("long_text")
    assert len(explorer.to_html().encode()) < 5_000_000
    sample, heads = explorer.content["samples"][0], explorer.content["heads"]
    (part,) = sample["parts"]
    assert len(part["tokens"]) == TOKENS and part["block"] == 1
    tab(page, "Tokens")
    words = page.locator("#panel .words button")
    assert words.count() == TOKENS
    words.nth(1990).click()
    same(words.nth(1990).get_attribute("aria-label").replace(",", ":"), read(explorer, part["maps"], 0, 0, 1990))
    bars = page.locator("#panel .bars button")
    names = [one["name"] for one in explorer.content["layers"] if one["places"] == ("token",)]
    assert bars.count() > 30 and "model.layers.29" in names
    for label in bars.evaluate_all("all => all.map(one => one.getAttribute('aria-label'))"):
        values = sample["layers"][layer_named(explorer, label.rpartition(":")[0].rpartition(" of ")[2])]
        same(label, read(explorer, values["map"], 0, 1990 // values["block"]))
    cells = page.locator("#panel .cells button")
    assert cells.count() == 30 * 9
    for label, number in cells.evaluate_all(
        "all => all.map(one => [one.getAttribute('aria-label'), one.dataset.head])"
    ):
        row = heads["withTokens"].index(int(number))
        same(label, read(explorer, sample["heads"]["tokens"], 0, row, 1990 // sample["heads"]["block"]))
    cells.nth(100).click()
    looks = sample["heads"]["attention"]
    keys = page.locator("#panel .words").nth(1).locator("button")
    keys.nth(3).hover()
    same(reading(page), read(explorer, looks["weights"], 100, 0, 3))
    assert looks["queries"] == [TOKENS - 1]


def test_the_head_that_brings_paris_is_found_with_the_mouse(capitals, opened):
    lens, text, explorer = capitals
    page, _ = opened("capitals")
    tab(page, "Heads")
    best = page.locator("#panel .bars button").first
    found = lens.contributions(text, target=" Paris", parts="head")
    place = int(found.direct[:, 0].abs().argmax())
    label = best.get_attribute("aria-label")
    assert f"of {found.items[place]}:" in label
    assert last_number(label) == pytest.approx(float(found.direct[place, 0]), rel=1e-4)
    largest = page.locator("#panel .cells button").evaluate_all(
        "all => all.map(one => one.getAttribute('aria-label')).sort((a, b) => "
        "Math.abs(b.split(': ').pop()) - Math.abs(a.split(': ').pop()))[0]"
    )
    heads = [number for number, index in enumerate(found.index) if index]
    head = max(heads, key=lambda number: abs(float(found.direct[number, 0])))
    assert f", {found.items[head]}:" in largest
    page.locator("#panel .cells button").nth(heads.index(head)).click()
    assert page.locator("#head-name").inner_text() == found.items[head]
    assert len(explorer.to_html().encode()) < 5_000_000
