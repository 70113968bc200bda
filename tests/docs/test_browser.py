"""The documentation site in a real browser: pages open whole, equations are drawn, nothing is fetched from outside."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PAGES = {
    "index.html": "What do you want to know?",
    "layer-dynamics.html": "Similarity",
    "saliency.html": "Perturbation",
    "notebooks/look_inside_your_own_model.html": "Look inside",
    "api/relevance.html": "Propagate a score back",
}
"""Page -> a text that stands on it."""
EQUATIONS = {"layer-dynamics.html": 3, "saliency.html": 40}
SIZES = {"wide": 1440, "narrow": 400}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_whole_and_fetches_nothing_from_outside(browser, built, name, size, scheme):
    page = browser.new_page(viewport={"width": SIZES[size], "height": 900}, color_scheme=scheme)
    requests, failed, troubles = [], [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto((built / name).as_uri())
    page.evaluate("document.fonts.ready")
    assert [url for url in requests if not url.startswith((built.as_uri(), "data:"))] == []
    assert failed == [] and troubles == []
    assert PAGES[name] in page.inner_text("article")
    images = page.evaluate("[...document.querySelectorAll('article img')].map(i => [i.complete, i.naturalWidth])")
    assert all(complete and width > 0 for complete, width in images)
    assert len(images) >= (1 if name in ("index.html", "saliency.html") else 0)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # only code and tables scroll
    page.close()


def test_the_gallery_of_explorers_opens(browser, built):
    page = browser.new_page()
    page.goto((built / "explorer.html").as_uri())
    links = [one.get_attribute("href") for one in page.locator("article a[href^='explorers/']").all()]
    assert {"explorers/cnn.html", "explorers/lstm.html"} <= set(links)
    for link in links:
        page.goto((built / link).as_uri())
        page.get_by_role("tab", name="Layers", exact=True).click()
        assert page.locator("#layer-name").is_visible()
        assert (built / link).stat().st_size < 5_000_000
    page.close()


@pytest.mark.parametrize("name", EQUATIONS)
def test_equations_are_drawn_by_the_browser_itself(browser, built, name):
    page = browser.new_page()
    page.goto((built / name).as_uri())
    sizes = page.evaluate("[...document.querySelectorAll('math')].map(m => [m.clientWidth, m.clientHeight])")
    assert len(sizes) >= EQUATIONS[name] and all(width > 2 and height > 5 for width, height in sizes)
    assert page.evaluate("document.fonts.check('16px \"STIX Two Math\"')")
    heights = page.evaluate("[...document.querySelectorAll('mfrac')].map(f => f.getBoundingClientRect().height)")
    assert heights and min(heights) > 12  # numerator above denominator
    shown = page.inner_text("article")
    assert "$" not in shown and "\\frac" not in shown
    page.close()


def test_the_search_finds_a_page(browser, built):
    page = browser.new_page()
    page.goto(f"{(built / 'search.html').as_uri()}?q=linear_probe")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert any("raining" in text for text in page.locator("#search-results li a").all_inner_texts())
    page.close()
