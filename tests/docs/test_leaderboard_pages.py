"""The pages of leaderboards say what was measured: their tables are those of the benchmarks."""

import pathlib
import re

import numpy as np
import pytest

from benchmarks import diffusion, image_figures, image_report

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faithfulness.md"
NUMBER = re.compile(r"(?<![\w.])[-+]?\d?\.\d{2,3}(?!\d)")
MOST_BYTES = 200_000


def test_the_table_of_maps_on_the_page_is_that_of_the_benchmark():
    told = rows(PAGE.read_text(), "## 33 maps")
    measured = image_figures.TABLES.read_text()
    photographs, digits = (rows(measured, title) for title in ("## EfficientNet-Lite0", "## the embedded digit net"))
    assert len(told) >= 15
    for name, cells in told.items():
        assert cells[:2] == photographs[name][:2], name
        assert cells[2] == digits[name][0].split()[0], name
        assert cells[3] == photographs[name][4], name


def test_the_photographs_on_the_page_are_those_of_the_benchmark():
    told = rows(PAGE.read_text(), "## Which map")
    measured = rows((ROOT / "benchmarks" / "faithfulness.md").read_text(), "## EfficientNet-Lite0")
    assert len(told) >= 8
    for name, cells in told.items():
        assert cells == [measured[name][9], *measured[name][:5]], name


def test_what_the_page_calls_better_or_tied_is():
    found = image_report.stored("lite0")["rows"]
    relevance, ranks, rise, shap, cam = (
        found[name]["gain"]
        for name in (
            "relevance z+",
            "z+ and rise 200, mean rank",
            *("rise, 400 masks", image_report.RIVALS[3], "grad_cam"),
        )
    )
    for better, worse in ((relevance, cam), (ranks, relevance), (ranks, cam), (ranks, rise)):
        assert image_report.interval(better - worse)[1] > 0
    assert image_report.interval(shap - relevance)[1] > 0
    for name, count in (("z+ corrected by 3 steps", 36), ("z+ corrected by 4 steps", 36)):
        corrected = found[name]["gain"]
        assert int(corrected.isfinite().sum()) == count
        for worse in (relevance, cam, rise, shap, ranks):
            assert image_report.interval(corrected - worse)[1] > 0
    for one, other in ((relevance, rise), (ranks, shap)):
        _, low, high = image_report.interval(one - other)
        assert low < 0 < high
    assert len(relevance) == 83 and int(shap.isfinite().sum()) == 57


def test_the_corrected_map_is_no_better_by_what_it_does_not_ask():
    found = image_report.stored("lite0")["rows"]

    def less(other, number):
        one = found["z+ corrected by 4 steps"]
        if number == "neighbors":
            gains = [each["insertion neighbors"] - each["deletion neighbors"] for each in (one, found[other])]
        else:
            gains = [each[number] for each in (one, found[other])]
        return tuple(round(part, 2) for part in image_report.interval(gains[0] - gains[1]))

    assert less("relevance z+", "neighbors") == (0.06, 0.02, 0.1)
    assert less("grad_cam", "neighbors") == (0.13, 0.06, 0.19)
    assert less("relevance z+", "ROAD") == (0.03, -0.02, 0.09)
    assert less("rise, 400 masks", "ROAD") == (0.11, 0.04, 0.18)
    assert less(image_report.RIVALS[3], "ROAD") == (0.09, 0.01, 0.17)
    for other in ("rise, 400 masks", image_report.RIVALS[3]):
        _, low, high = less(other, "neighbors")
        assert low < 0 < high
    found = image_report.stored("lite1")["rows"]
    assert less("relevance z+", "gain")[0] == 0.24 and less(image_report.RIVALS[3], "gain")[0] == 0.17
    assert less(image_report.RIVALS[3], "ROAD")[0] == 0.1
    assert all(less(other, "gain")[1] > 0 for other in image_report.RIVALS)


def test_the_other_networks_on_the_page_are_those_of_the_benchmark():
    told = rows(PAGE.read_text(), "Other networks, on which nothing was tuned")
    ranks = "z+ and rise 200, mean rank"
    pairs = [("relevance z+", other) for other in (*image_report.RIVALS[1:], "control: Sobel edges")]
    pairs += [(ranks, "relevance z+"), (ranks, image_report.RIVALS[3])]
    networks = list(image_report.NETWORKS)
    networks.remove("digits")
    assert len(told) == len(networks) == 6
    for network, (name, cells) in zip(networks, told.items(), strict=True):
        found = image_report.stored(network)["rows"]
        relevance = found["relevance z+"]["gain"]
        mean = image_report.interval(relevance)[0]
        shown = [str(int(relevance.isfinite().sum())), f"{mean:.3f}"]
        for one, other in pairs:
            change = found[one]["gain"] - found[other]["gain"] if {one, other} <= found.keys() else relevance[:0]
            enough = int(change.isfinite().sum()) >= image_report.FEWEST
            shown.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*image_report.interval(change)) if enough else "")
        assert cells == shown, name


def test_the_mean_rank_is_above_relevance_in_every_network():
    for network in ("lite0", "lite1", "lite2", "reader", "text", "faces"):
        found = image_report.stored(network)["rows"]
        ranks = found["z+ and rise 200, mean rank"]["gain"]
        assert image_report.interval(ranks - found["relevance z+"]["gain"])[1] > 0
        _, low, high = image_report.interval(ranks - found[image_report.RIVALS[3]]["gain"])
        assert high < 0 if network == "faces" else low < 0 < high


@pytest.mark.slow
def test_the_tables_are_those_of_the_stored_numbers(capsys):
    image_report.report()
    assert capsys.readouterr().out == (ROOT / "benchmarks" / "faithfulness.md").read_text()


def test_what_is_stored_is_unpacked_for_a_new_row(tmp_path, monkeypatch):
    image_report.unpack(tmp_path)
    with np.load(image_report.STORED) as file:
        assert {path.stem for path in tmp_path.glob("*.pt")} == set(file["cases"].tolist())
    monkeypatch.setattr(image_report, "STORED", tmp_path / "again.npz")
    first = image_report.STORED
    image_report.pack(tmp_path)
    with np.load(first) as again, np.load(ROOT / "benchmarks" / "faithfulness.npz") as before:
        for name in before.files:
            assert np.array_equal(again[name], before[name], equal_nan=before[name].dtype.kind == "f"), name


def test_the_leaderboard_is_drawn_from_the_benchmark(tmp_path):
    plot = image_figures.leaderboard()
    found, digits = (image_figures.rows(title) for title in image_figures.SUITES.values())
    assert len(found) == len(digits) == 33 and found["relevance z+"] == (0.296, 0.169, 0.440)
    names = plot.data["methods"]
    assert [(mean, *span) for mean, span in zip(plot.data["values"], plot.data["interval"].tolist(), strict=True)] == [
        found[name] for name in names
    ]
    assert plot.data["values"].tolist() == sorted((mean for mean, _, _ in found.values()), reverse=True)
    assert plot.data["digits"].tolist() == [digits[name][0] for name in names]
    assert [axes.get_title() for axes in plot.axes] == ["photographs, 40 from 11 pictures", "digits, 16 pictures"]
    first, second = (image_figures.leaderboard().save(tmp_path / f"{k}.png").read_bytes() for k in range(2))
    assert first == second


def test_the_pictures_of_the_page_are_there_and_small():
    shown = re.findall(r"!\[([^]]*)\]\((faithfulness-\w+\.png)\)", PAGE.read_text())
    assert {name for _, name in shown} == {path.name for path in PAGE.parent.glob("faithfulness-*.png")}
    assert len(shown) == 4
    for told, name in shown:
        assert len(NUMBER.findall(told)) >= 6, name
        content = (PAGE.parent / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < MOST_BYTES, name


def rows(text, title, stop="\n\n"):
    """The rows of the first table after a title: cells by the name of the method."""
    table = text[text.index(title) :]
    table = table[table.index("| --- |") :]
    lines = table[: (table + stop).index(stop)].splitlines()[1:]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}


NAMES = {
    "`leave_one_out`": "leave_one_out",
    "`centered_relevance` (AttnLRP rules)": "centred relevance, attn",
    "`centered_relevance` (CP-LRP rules)": "centred relevance, cp",
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


def test_the_table_of_words_on_the_page_is_that_of_the_benchmark():
    measured, found = (ROOT / "benchmarks" / "diffusion.md").read_text(), diffusion.stored()
    assert measured == diffusion.page(found, len(found["relevance"]))
    told = rows((ROOT / "docs" / "diffusion.md").read_text(), "This is the truth that maps were scored by")
    assert told == rows(measured, "# Maps of words")


def test_the_agreement_with_leaving_parts_out_is_that_of_the_benchmark():
    page, measured = (ROOT / "docs" / "pictures-and-words.md").read_text(), (ROOT / "benchmarks" / "questions.md")
    known = rows(measured.read_text(), "# A picture and a question")
    told = re.findall(r"(?<![\d.])(\.\d\d) \[(\.\d\d), (\.\d\d)\]", " ".join(page.split()))
    cells = [known["`leave_one_out`"][3], known["`centered_relevance (attn)`"][1], known["`relevance (attn)`"][3]]
    assert [f"0{mean} [0{low}, 0{high}]" for mean, low, high in told] == cells


WAYS = {
    '`"auto"`, the default': "relevance + ablations, {}",
    '`"auto"`': "relevance + ablations, {}",
    '`"ablation"`': "ablations alone, {}",
    "ContextCite's lasso": "ContextCite, {}",
    '`"leave_one_out"`': "leave one out",
    '`"relevance"`': "relevance, cp",
    '`"integrated_gradients"`': "integrated gradients",
    '`"attention"`': "attention",
    '`"input_x_gradient"`': "gradient x input",
    "random": "random",
}
"""The rows of docs/answers.md, and what they are called in benchmarks/answers.md."""


def test_the_table_of_answers_on_the_page_is_that_of_the_benchmark():
    page = (ROOT / "docs" / "answers.md").read_text()
    known = rows((ROOT / "benchmarks" / "answers.md").read_text(), "| method | passes")
    table = page[page.index("| method | passes | score") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 16
    for line in table:
        name, passes, score, less = (cell.strip() for cell in line.split("|")[1:-1])
        row = known[WAYS[name].format(passes)]
        assert [passes, "102", score, less] == [row[0], row[1], row[2], row[5]], name
