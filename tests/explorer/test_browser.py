"""The explorer in a real browser, used with the mouse and with the keyboard: every number is Python's."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import layerlens
from tests.report.test_browser import CONTRAST

from .conftest import HOSTILE, last_number, layer_named, read, reading, same, tab

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

MADE = ("digits", "words", "series")
SCRIPTS = sorted((Path(layerlens.__file__).parent / "explorer" / "templates").glob("*.js"))
TYPESCRIPT = "typescript@5.9.3"


def point_at(page, element, row, column, rows, columns):
    """Move the mouse to a cell of a map."""
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("made", MADE)
def test_every_view_opens_whole_and_fetches_nothing(opened, made, width, scheme):
    page, explorer = opened(made, viewport={"width": width, "height": 900}, color_scheme=scheme)
    for name in (*explorer.views, "About"):
        tab(page, name)
        assert page.get_by_role("tabpanel").inner_text().strip()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        assert page.evaluate(CONTRAST) == [], name


@pytest.mark.parametrize("made", MADE)
def test_everything_can_be_clicked(opened, made):
    page, explorer = opened(made)
    content = explorer.content
    page.click("#compare")
    for name in (*explorer.views, "About"):
        tab(page, name)
        for which in ("input-a", "target-b", "method-b"):
            count = page.locator(f"#{which} option").count()
            for place in [*range(count), 0]:
                page.select_option(f"#{which}", str(place))
        for place in range(len(content["numbers"])):
            page.select_option("#number", str(place))
    items = [row for row in content["tree"] if row["layers"]]
    for row in items:
        page.locator(f'[data-path="{row["path"]}"] > .row').click()
        assert page.locator("#layer-name").inner_text().startswith(row["path"])
    tab(page, "Layers")
    for place in range(3):
        page.select_option("#sort", str(place))
        page.locator("[data-unit]").first.click()
        assert page.locator("#unit-name").is_visible()
    page.select_option("#kind", "1")
    page.locator("#top-inputs button").first.click()
    for summary in (tab(page, "Ledger"), *page.locator(".flow > details > summary").all())[1:]:
        summary.click()
    if made == "words":
        tab(page, "Tokens")
        page.locator(".words button").first.click()
        page.locator(".cells button").first.click()
        assert page.locator("#head-name").is_visible()
        page.select_option("#share", "1")


def test_a_map_says_its_numbers_to_mouse_and_keyboard(opened):
    page, explorer = opened("digits")
    (part,) = explorer.content["samples"][1]["parts"]
    page.select_option("#input-a", "1")
    page.select_option("#target-a", "1")
    for method in (0, 1):
        page.select_option("#method-a", str(method))
        values = read(explorer, part["maps"], method, 1)
        rows, columns = values.shape
        element = page.locator("#panel .map").first
        for row, column in ((0, 0), (5, 20), (rows - 1, columns - 1)):
            point_at(page, element, row, column, rows, columns)
            same(reading(page), values[row, column])
    element.focus()
    point = np.array([rows - 1, columns - 1])
    for key, step in (("ArrowUp", (-1, 0)), ("ArrowLeft", (0, -1)), ("ArrowUp", (-1, 0)), ("ArrowRight", (0, 1))):
        page.keyboard.press(key)
        point = point + step
        same(reading(page), values[tuple(point)])


def test_layers_units_and_the_tree_say_their_numbers(opened):
    page, explorer = opened("digits")
    layer = layer_named(explorer, "blocks.1")
    values = explorer.content["samples"][2]["layers"][layer]
    page.select_option("#input-a", "2")
    for number, one in enumerate(explorer.content["numbers"]):
        page.select_option("#number", str(number))
        row = page.locator('[data-path="blocks.1"]')
        shown = float(row.get_attribute("aria-label").rsplit(" ", 1)[1])
        assert shown == float(f"{float(read(explorer, values['numbers'], number, 0)):.6g}"), one
    page.locator('[data-path="blocks.1"] > .row').click()
    relevance, active = read(explorer, values["relevance"], 0), read(explorer, values["activation"])
    order = np.argsort(-np.abs(relevance), kind="stable")
    labels = [one.get_attribute("aria-label") for one in page.locator("#panel [data-unit]").all()]
    for label, unit in zip(labels, order, strict=True):
        found = re.fullmatch(r"unit (\d+): relevance (\S+), activation (\S+)", label)
        assert int(found[1]) == unit
        assert float(found[2]) == float(f"{float(relevance[unit]):.6g}")
        assert float(found[3]) == float(f"{float(active[unit]):.6g}")
    unit = values["kept"][0]
    page.locator(f'[data-unit="{unit}"]').click()
    maps = read(explorer, values["maps"], 0, 0)
    rows, columns = maps.shape
    element = page.locator("#panel .map:not(.small)").nth(1)
    point_at(page, element, 3, 2, rows, columns)
    same(reading(page), maps[3, 2])
    page.select_option("#kind", "1")
    best = page.locator("#top-inputs button").first.get_attribute("aria-label")
    every = [float(read(explorer, one["layers"][layer]["activation"], unit)) for one in explorer.content["samples"]]
    same(best, max(every))
    assert best.startswith(explorer.content["samples"][int(np.argmax(every))]["label"])


def test_tokens_heads_and_the_ledger_say_their_numbers(opened):
    page, explorer = opened("words")
    sample, heads = explorer.content["samples"][0], explorer.content["heads"]
    (part,) = sample["parts"]
    tab(page, "Tokens")
    tokens = page.locator("#panel .words").first.locator("button")
    for place in range(tokens.count()):
        tokens.nth(place).hover()
        same(reading(page), read(explorer, part["maps"], 0, 0, place))
    tokens.nth(2).click()
    rows = [one.get_attribute("aria-label") for one in page.locator("#panel .bars button").all()]
    layer = layer_named(explorer, "blocks.1")
    (label,) = [one for one in rows if " of blocks.1:" in one]
    same(label, read(explorer, sample["layers"][layer]["map"], 0, 2))
    cells = page.locator(".cells button")
    for place in range(cells.count()):
        number = int(cells.nth(place).get_attribute("data-head"))
        row = heads["withTokens"].index(number)
        same(cells.nth(place).get_attribute("aria-label"), read(explorer, sample["heads"]["tokens"], 0, row, 2))
    tab(page, "Heads")
    for share, name in enumerate(("direct", "total")):
        page.select_option("#share", str(share))
        for label in (one.get_attribute("aria-label") for one in page.locator("#panel .bars button").all()):
            place = next(k for k, one in enumerate(heads["parts"]) if f"of {one['name']}:" in label)
            same(label, read(explorer, sample["heads"][name], 0, place))
    cells.first.click()
    query = page.locator("#panel .words").nth(1).locator("button")
    looks = sample["heads"]["attention"]
    for place in range(query.count()):
        query.nth(place).hover()
        same(reading(page), read(explorer, looks["weights"], 0, -1, place))
    tab(page, "Ledger")
    for place, summary in enumerate(page.locator(".flow > details > summary").all()):
        summary.hover()
        assert last_number(reading(page)) == pytest.approx(sample["ledger"]["sums"][0][place + 1], rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("width", [1280, 390])
def test_what_a_click_shows_is_in_sight(opened, width):
    page, _ = opened("words", viewport={"width": width, "height": 844})

    def in_sight(selector):
        box = page.locator(selector).first.bounding_box()
        assert 0 <= box["y"] < 844 - 150, (selector, box)

    page.locator('[data-path="blocks.0.mlp"] > .row').click()
    in_sight("#layer-name")
    for place in (7, 0):
        page.locator("#panel [data-unit]").nth(place).click()
        in_sight("#unit-name")
        in_sight("#panel [data-unit][aria-pressed=true]")
    tab(page, "Tokens")
    page.locator(".words button").nth(1).click()
    in_sight("#token-name")
    tab(page, "Heads")
    page.locator(".cells button").first.click()
    in_sight("#head-name")
    page.locator("#panel .bars button").nth(2).click()
    in_sight("#head-name")


def test_lines_of_one_map_have_one_scale(opened):
    page, explorer = opened("series")
    (part,) = explorer.content["samples"][0]["parts"]
    values = read(explorer, part["maps"], 0, 0)
    paths = page.locator("#panel path.value").evaluate_all("all => all.map(one => one.getAttribute('d'))")
    drawn = [float(re.match(r"M0 (\S+?)L", path)[1]) for path in paths]
    low, high = min(0, values.min()), max(0, values.max())
    np.testing.assert_allclose(drawn, 96 - 92 * (values[:, 0] - low) / (high - low), atol=0.01)


def test_two_are_compared_side_by_side(opened):
    page, explorer = opened("series")
    page.click("#compare")
    page.select_option("#input-b", "1")
    page.select_option("#target-b", "1")
    page.select_option("#method-b", "1")
    maps = [page.locator(f'[data-side="{side}"] .map').nth(1) for side in (0, 1)]
    assert abs(maps[0].bounding_box()["y"] - maps[1].bounding_box()["y"]) < 2
    for side, element in enumerate(maps):
        values = read(explorer, explorer.content["samples"][side]["parts"][0]["maps"], side, side, 0)
        point_at(page, element, 0, 7, 1, len(values))
        same(reading(page), values[7])


def sixth(value):
    """A number as the page reads it."""
    return float(f"{float(np.float32(value)):.6g}")


def both(text, one, other):
    """Check the two numbers of a text, and their difference, to the last of six digits of the largest."""
    found = re.search(r"A (\S+), B (\S+), A − B ([^\s,]+)", text)
    one, other = float(np.float32(one)), float(np.float32(other))
    assert (float(found[1]), float(found[2])) == (sixth(one), sixth(other)), text
    largest = max(abs(one), abs(other), abs(one - other))
    assert abs(float(found[3]) - (one - other)) <= 0.6 * 10.0 ** (np.floor(np.log10(largest)) - 5)


def test_the_tree_and_the_units_compare_both_sides(opened):
    page, explorer = opened("digits")
    page.click("#compare")
    page.select_option("#input-b", "0")
    page.select_option("#target-b", "1")
    layers = {one["path"]: place for place, one in reversed(list(enumerate(explorer.content["layers"])))}
    own = explorer.content["samples"][0]["layers"]
    for number in (0, 2):
        page.select_option("#number", str(number))
        values = {path: read(explorer, own[layer]["numbers"], number) for path, layer in layers.items()}
        values = {path: found for path, found in values.items() if np.isfinite(found).all()}
        key = {
            "1": lambda path, values=values: abs(values[path][0]),
            "2": lambda path, values=values: abs(values[path][-1]),
            "3": lambda path, values=values: abs(float(values[path][0]) - float(values[path][-1])),
        }
        for order, first in key.items():
            page.select_option("#order", order)
            rows = page.get_by_role("treeitem").all()
            paths = [row.get_attribute("data-path") for row in rows]
            assert set(paths) == set(values)
            sizes = [first(path) for path in paths]
            assert sizes == sorted(sizes, reverse=True) or np.allclose(sizes, sorted(sizes, reverse=True), rtol=1e-5)
            for row, path in zip(rows, paths, strict=True):
                both(row.get_attribute("aria-label"), *values[path])
    page.locator('[data-path="blocks.1"] > .row').click()
    relevance = read(explorer, own[layers["blocks.1"]]["relevance"])
    for by, first in enumerate((relevance[0], relevance[1], relevance[0] - relevance[1])):
        page.select_option("#by", str(by))
        units = page.locator("#panel [data-unit]").all()
        order = [int(unit.get_attribute("data-unit")) for unit in units]
        assert np.allclose(np.abs(first[order]), np.sort(np.abs(first))[::-1], rtol=1e-5)
        for unit, place in list(zip(units, order, strict=True))[:3]:
            both(unit.get_attribute("aria-label"), *relevance[:, place])
    page.click("#compare")
    page.select_option("#order", "0")
    assert page.get_by_role("treeitem").count() == len(explorer.content["tree"])


def test_the_keyboard_is_enough(opened):
    page, _ = opened("digits")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"

    def until(test):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(test):
                return
        raise AssertionError(test)

    until("document.activeElement.getAttribute('role') === 'treeitem'")
    outline = "getComputedStyle(document.activeElement.firstElementChild).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.path") == "stem"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.path") == "stem.conv"
    page.keyboard.press("Enter")
    assert page.locator("#layer-name").inner_text().startswith("stem.conv")
    until("document.activeElement.getAttribute('role') === 'tab'")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", selected=True).inner_text() == "Ledger"
    page.keyboard.press("ArrowLeft")
    until("document.activeElement.dataset.unit !== undefined")
    chosen = page.evaluate("document.activeElement.dataset.unit")
    page.keyboard.press("Enter")
    assert page.locator("#unit-name").inner_text().startswith(f"Unit {chosen} of stem.conv")
    assert page.evaluate("document.activeElement.dataset.unit") == chosen  # the focus stays


def test_tokens_and_heads_are_one_stop_of_the_tab_key_each(opened):
    page, explorer = opened("words")
    sample = explorer.content["samples"][0]
    tab(page, "Tokens")
    words = page.locator("#panel .words button")
    assert words.evaluate_all("all => all.filter(one => one.tabIndex === 0).length") == 1
    words.first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowLeft"):
        page.keyboard.press(key)
    same(reading(page), read(explorer, sample["parts"][0]["maps"], 0, 0, 2))
    page.keyboard.press("Enter")
    assert page.locator("#token-name").inner_text().startswith("Token 2 ")
    assert words.evaluate_all("all => all.findIndex(one => one.tabIndex === 0)") == 2
    page.locator(".cells button").first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
    same(reading(page), read(explorer, sample["heads"]["tokens"], 0, 3, 2))
    page.keyboard.press("ArrowRight")  # there is none further
    page.keyboard.press("Enter")
    part = explorer.content["heads"]["parts"][explorer.content["heads"]["withTokens"][3]]
    assert page.locator("#head-name").inner_text() == part["name"]


def test_names_for_a_reader_of_the_screen(opened):
    page, explorer = opened("digits")
    assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
    assert page.get_by_role("tree", name="Layers").count() == page.get_by_role("tablist", name="Views").count() == 1
    assert page.get_by_role("treeitem").count() == len(explorer.content["tree"])
    for role in ("button", "combobox", "application"):
        for one in page.get_by_role(role).all():
            assert one.evaluate(
                "e => (e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent).trim()"
            )


def test_hostile_names_are_text_and_results_cannot_run_anything(opened):
    page, _ = opened("digits")
    alerts = []
    page.on("dialog", lambda dialog: alerts.append(dialog.dismiss()))
    assert page.locator("h1").inner_text() == HOSTILE and page.title() == HOSTILE
    tab(page, HOSTILE)
    frame = page.locator("#panel iframe")
    assert frame.get_attribute("sandbox") == ""
    inside = page.frame_locator("#panel iframe")
    assert "epsilon" in inside.locator("body").inner_text() and inside.locator("img").count() == 2
    assert alerts == []


def test_a_notebook_shows_it_in_a_frame(browser, digits):
    page = browser.new_page()
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.set_content(f"<!doctype html><body>{digits[2]._repr_html_()}</body>")
    inside = page.frame_locator("iframe")
    inside.get_by_role("tab", name="Layers", exact=True).first.click()
    assert inside.locator("#layer-name").is_visible() and troubles == []
    page.close()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_have_types(script, tmp_path):
    assert shutil.which("npm"), "this test needs npm"
    options = "--allowJs --checkJs --strict --noEmit --target es2022 --module esnext --moduleDetection force"
    command = [
        "npm",
        "exec",
        "--yes",
        f"--package={TYPESCRIPT}",
        "--",
        "tsc",
        *options.split(),
        "--lib",
        "es2022,dom,dom.iterable",
        script,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
