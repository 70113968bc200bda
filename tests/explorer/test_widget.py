"""The widget of a notebook: what is selected, who may select, and the page in a browser, as a front end shows it."""

import json
import sys

import pytest

pytest.importorskip("anywidget")
import traitlets

from layerlens.errors import MissingPackage, OptionError
from layerlens.explorer.widget import KEYS, first_selected

from .conftest import layer_named


@pytest.fixture
def widget(words):
    return words[2].widget(height=500)


def test_it_has_the_page_and_what_it_opens_with(words, widget):
    explorer = words[2]
    assert widget.page == explorer.to_html() and widget.title == explorer.title and widget.height == 500
    assert "Content-Security-Policy" in widget.page
    assert widget.selected == first_selected(explorer.content) and tuple(widget.selected) == KEYS
    assert widget.selected["layer"] == explorer.content["layers"][-1]["name"]
    assert "<iframe" in explorer._repr_html_()  # the page needs no widget


def test_a_change_is_seen_and_can_be_used(words, widget):
    lens, texts, explorer = words
    seen = []
    widget.observe(lambda change: seen.append(change["new"]), "selected")
    head = {"layer": explorer.content["heads"]["parts"][0]["layer"], "head": 1}
    new = {**widget.selected, "view": "Heads", "input": 1, "layer": "blocks.0.mlp", "unit": 3, "token": 2, "head": head}
    widget.set_state({"selected": new})  # as a front end does
    assert seen == [new] and widget.selected == new
    maps = lens.activation_maps(texts[new["input"]], new["layer"], units=new["unit"], call=new["call"])
    values = explorer.content["samples"][1]["layers"][layer_named(explorer, "blocks.0.mlp")]
    assert float(maps.values.max()) == pytest.approx(float(explorer.array(values["activation"])[3]), rel=1e-6)


@pytest.mark.parametrize("change, says", [
    ({"input": 2}, "input must be a whole number from 0 to 1, got 2"),
    ({"input": True}, "input"),
    ({"target": -1}, "target"),
    ({"method": 1.0}, "method"),
    ({"view": "<script>"}, "no view '<script>'"),
    ({"view": ["Input"]}, "no view"),
    ({"layer": "blocks.9"}, "no layer"),
    ({"layer": None}, "no layer"),
    ({"call": 1}, "no layer and call"),
    ({"call": False}, "no layer and call"),
    ({"layer": "blocks.0.mlp", "unit": 8}, "unit must be a whole number from 0 to 7, got 8"),
    ({"token": 4}, "token"),
    ({"head": {"layer": "blocks.0", "head": 9}}, "no head"),
    ({"head": "first"}, "head must be None or a dict"),
    ({"compared": {"input": 0, "target": 2, "method": 0}}, "target"),
    ({"compared": [0, 0, 0]}, "compared must be"),
    ({"page": "<p>"}, "must be a dict of view"),
])  # fmt: skip
def test_what_the_page_does_not_have_is_refused(widget, change, says):
    before = widget.selected
    with pytest.raises(traitlets.TraitError, match=says):
        widget.selected = {**before, **change}
    with pytest.raises(traitlets.TraitError, match=says):
        widget.set_state({"selected": {**before, **change}})  # as a front end does
    assert widget.selected == before


def test_without_the_package_the_error_names_the_extra(words, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(MissingPackage, match=r"pip install 'layerlens-torch\[widget\]'"):
        words[2].widget()
    with pytest.raises(OptionError, match="height"):
        words[2].widget(height=0)


HOST = """
async ({ esm, state }) => {
  const listeners = new Set();
  window.model = {
    get: (name) => state[name],
    set(name, value) { state[name] = value; for (const call of listeners) call(); },
    save_changes: () => window.saved(JSON.stringify(state.selected)),
    on: (name, call) => name === "change:selected" && listeners.add(call),
    off: (name, call) => listeners.delete(call),
  };
  const { default: widget } = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
  const el = document.body.appendChild(document.createElement("div"));
  window.leave = widget.render({ model, el });
}
"""
"""The part of a front end: a model with the state of the widget, and its module, which shows it."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_clicks_arrive_in_python_and_python_selects(browser, words, widget):
    page, troubles = browser.new_page(viewport={"width": 1100, "height": 900}), []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda one: troubles.append(one.url) if not one.url.startswith(("blob:", "about:")) else 0)
    page.expose_function("saved", lambda text: widget.set_state({"selected": json.loads(text)}))
    page.set_content("<!doctype html><body></body>")
    state = {name: getattr(widget, name) for name in ("title", "page", "height", "selected")}
    page.evaluate(HOST, {"esm": widget._esm, "state": state})
    frame, inside = page.locator("iframe"), page.frame_locator("iframe")
    assert frame.get_attribute("sandbox") == "allow-scripts" and frame.bounding_box()["height"] == 502

    def until(**expected):
        for _ in range(100):
            if all(widget.selected[name] == value for name, value in expected.items()):
                return
            page.wait_for_timeout(20)
        raise AssertionError((widget.selected, expected))

    inside.locator('[data-path="blocks.0.mlp"] > .row').click()
    until(view="Layers", layer="blocks.0.mlp", unit=None)
    inside.locator('[data-unit="5"]').click()
    until(unit=5)
    inside.get_by_role("tab", name="Tokens").click()
    inside.locator(".words button").nth(2).click()
    inside.locator(".cells button").nth(1).click()
    until(view="Heads", token=2, head={"layer": "blocks.0", "head": 1})
    inside.locator("#compare").click()
    until(compared={"input": 1, "target": 0, "method": 0})

    chosen = {**widget.selected, "view": "Layers", "layer": "blocks.1.out", "unit": 4, "target": 1, "compared": None}
    widget.selected = chosen
    page.evaluate("chosen => model.set('selected', chosen)", chosen)
    inside.locator("#unit-name", has_text="Unit 4 of blocks.1.out").wait_for()
    assert inside.locator("#target-a").input_value() == "1" and inside.locator("#target-b").count() == 0
    assert widget.selected == chosen

    page.evaluate("selected => postMessage(selected, '*')", {**chosen, "unit": 1})  # nobody else is heard
    page.evaluate("document.body.append(document.querySelector('iframe').parentElement)")  # a notebook moves it
    inside.locator("#unit-name", has_text="Unit 4 of blocks.1.out").wait_for()
    inside.locator('[data-unit="2"]').click()
    until(unit=2)
    page.evaluate("leave()")
    inside.locator('[data-unit="3"]').click()
    page.wait_for_timeout(100)
    assert widget.selected["unit"] == 2 and troubles == []
    page.close()
