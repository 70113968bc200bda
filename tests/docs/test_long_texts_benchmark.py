"""The benchmark of long texts: its shared passes and sweeps against plain ones, its parts, and what it stores."""

import importlib
import pathlib

import numpy as np
import pytest
import torch

from layerlens import relevance, saliency

for package in ("scipy", "sklearn"):
    pytest.importorskip(package)

BENCHMARKS = ("answer_report", "answers", "long_maps", "long_methods", "long_prose", "long_report", "long_truth")
answer_report, answers, long_maps, long_methods, long_prose, long_report, long_truth = (
    importlib.import_module(f"benchmarks.{name}") for name in BENCHMARKS
)


class Words:
    """A tokenizer of words, numbered by their letters."""

    eos_token_id = 1

    def __call__(self, text, **options):
        return {"input_ids": [2 + sum(map(ord, word)) % 37 for word in text.split(" ") if word] or [2]}


@pytest.fixture
def model():
    transformers = pytest.importorskip("transformers")
    long_models = importlib.import_module("benchmarks.long_models")

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=40, num_key_value_heads=1, initializer_range=0.4, **sizes, attn_implementation="sdpa"
    )
    made = long_models.Causal(transformers.LlamaForCausalLM(config).double().eval(), Words())
    made.begin = ()
    return made


@pytest.fixture
def text():
    queries = (long_prose.Query((7, 8), 3, 4, (1,)), long_prose.Query((9,), 5, 6, (2,)))
    return long_prose.Text("planted", "nowhere", 9, (), tuple(range(10, 19)), (0, 0, 0, 1, 1, 2, 2, 2, 3), queries)


def test_texts_that_share_beginnings_get_the_scores_of_plain_passes(model, text):
    masks = np.concatenate([~np.eye(4, dtype=bool), np.zeros((1, 4), dtype=bool), np.ones((1, 4), dtype=bool)])
    for fill in ("deleted", "space", "other text"):
        contexts = long_truth.rows(text, masks, fill, model.pool, 2)
        assert {len(one) for one in contexts} == ({6, 7, 8, 0, 9} if fill == "deleted" else {9})
        found = model.ask(text, contexts)
        for row, context in enumerate(contexts):
            for column, query in enumerate(text.queries):
                ids = torch.tensor([[*context, *query.ids]])
                logits = model.model(ids, use_cache=False).logits[0, -1]
                plain = torch.stack([logits[query.answer], logits[query.foil], logits.logsumexp(0)])
                torch.testing.assert_close(found[row, column].double(), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rules", ["attn", "cp"])
def test_both_maps_of_one_sweep_are_those_of_the_library(model, text, rules):
    case = model.case(text, text.queries[0])
    target = model.target(case, text.queries[0], "contrast")
    found = long_maps._swept(rules)(model, case, target)
    x = {"input_ids": case.ids[None]}
    options = {"target": target, "rules": rules, "forward": model.forward}
    plain = relevance(model.model, x, **options).tensor[0]
    torch.testing.assert_close(found[f"relevance, {rules}"], plain)
    plain = saliency(model.model, x, method="centered_relevance", **options).tensor[0]
    torch.testing.assert_close(found[f"centered relevance, {rules}"], plain)


def test_one_token_at_a_time_is_exchanged_for_another_of_the_context(text):
    contexts, places = long_maps.leave_one_out(text, 3, 0)
    changed = np.array(contexts) != np.array(text.ids)
    assert len(contexts) == 3 * len(text.ids) and changed.sum(axis=1).max() == 1
    assert (changed.argmax(axis=1) == places.numpy()).all()
    assert {token for row in contexts for token in row} <= set(text.ids)


def test_parts_are_runs_that_end_with_a_word_or_a_sentence():
    words = "The door of Mira is red . It rained on most days of that spring . Nobody came".split()
    texts = [f" {word}" if word.isalnum() else word for word in words]
    labels = long_prose.cut(texts, 2)
    assert np.diff(labels).min() >= 0 and np.diff(labels).max() == 1 and labels[0] == 0
    ends = [texts[place] for place in range(len(texts) - 1) if labels[place] != labels[place + 1]]
    assert ends == [".", "."]
    assert long_prose.cut(texts, len(texts)) == list(range(len(texts)))
    pieces = [" v", "io", "lin", " and", " lamp"]
    assert long_prose.cut(pieces, 2)[:3] == [0, 0, 0]  # a word stays in one part


@pytest.fixture
def linear():
    """A text whose score is the sum of known values of its parts."""
    random = np.random.default_rng(0)
    values = random.normal(size=(2, 6))
    one = long_truth.Measured(
        "smollm2", "planted", "nowhere", 50, 0, np.full(6, 3), values == values.max(axis=1)[:, None], None
    )

    def scores(masks):
        total = masks @ values.T + 4
        return np.stack([total, np.zeros_like(total), total + 1], axis=-1)

    one.base = scores(np.ones((1, 6)))[0]
    for name, (_, masks) in long_truth.SETS.items():
        one.masks[name] = masks(6, 50, 0)
        one.scores[name] = scores(one.masks[name])
    one.maps["contrast, centered relevance, attn"] = values
    one.maps["contrast, relevance, cp"] = -values
    one.masks["strongest, deleted"] = long_methods.quarters(one)
    one.scores["strongest, deleted"] = scores(one.masks["strongest, deleted"])
    one.seconds["a forward pass"] = 1.0
    return one


def test_a_map_that_is_right_about_an_additive_text_gets_all_points_and_its_opposite_none(linear):
    right, wrong = (
        long_report.judged(linear, linear.maps[f"contrast, {name}"], "contrast", True)
        for name in ("centered relevance, attn", "relevance, cp")
    )
    np.testing.assert_allclose(right[:5], 1)
    np.testing.assert_allclose(wrong[:5], [-1, -1, -1, 0, 0])
    assert right[5] > wrong[5] and right[6] < wrong[6]
    both = long_methods.METHODS[long_methods.BOTH][0](linear, "contrast")
    assert long_report.judged(linear, both, "contrast", True)[:2].min() > 0.99
    np.testing.assert_allclose(long_methods.each(linear, "contrast"), linear.maps["contrast, centered relevance, attn"])


def test_what_is_stored_comes_back_and_makes_the_page(linear, tmp_path):
    path = tmp_path / "texts.npz"
    long_truth.save(dict.fromkeys("abcde", linear), path)
    back = long_truth.load(path)
    for name, one in linear.arrays().items():
        np.testing.assert_array_equal(back["a"].arrays()[name], one)
    page = long_report.page(back)
    assert page == long_report.page(dict.fromkeys("abcde", linear))
    assert "## " not in long_report.page(dict.fromkeys("abcd", linear))
    assert "| centered relevance, attn | 3 | 5 | 1.00 [1.00, 1.00] | 1.00 | 1.00 | 1.00 |" in page


ROOT = pathlib.Path(__file__).parents[2]
NAMES = {
    "`centered_relevance` (AttnLRP rules)": "centered relevance, attn",
    "`centered_relevance` (CP-LRP rules)": "centered relevance, cp",
    "`relevance` (AttnLRP)": "relevance, attn",
    "`relevance` (CP-LRP)": "relevance, cp",
    "`input_x_gradient`": "gradient x input",
    "leaving out each sentence": "leave one out",
}


def test_the_table_of_longer_texts_on_the_page_is_that_of_the_benchmark():
    told = rows((ROOT / "docs" / "language-models.md").read_text(), "## Longer texts")
    measured = rows((ROOT / "benchmarks" / "answers.md").read_text(), "## One sweep")
    assert list(told) == list(NAMES)
    assert [told[name] for name in told] == [measured[NAMES[name]] for name in told]
    intervals = [cells[2].split("[")[1].rstrip("]").split(", ") for cells in measured.values() if "[" in cells[2]]
    low, high = np.array(intervals, dtype=float).T
    assert (low[:3] < 0).all() and (high[:3] > 0).all()  # tied
    assert high[3] < 0 < low[4]


@pytest.mark.slow
def test_the_table_of_longer_texts_is_made_from_the_stored_numbers():
    cases = [case for case in answers.unpack(answers.PACKED) if "centered relevance, cp" in case.maps]
    assert len(cases) == 30
    measured = rows((ROOT / "benchmarks" / "answers.md").read_text(), "## One sweep")
    for name in answer_report.SWEPT[:-1]:
        found = np.mean([case.agreement(case.maps[name]) for case in cases])
        assert abs(found - float(measured[name][1].split()[0])) < 0.0051, name


def rows(text, title):
    """The rows of the first table after a title: cells by the name of the method."""
    table = text[text.index(title) :]
    table = table[table.index("| --- |") :].split("\n\n")[0]
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[1:])
    return {first: rest for first, *rest in cells}


LONG = {
    **dict(list(NAMES.items())[:4]),
    "`leave_one_out`, by token": "leave_one_out, tokens",
    "leaving out each part": "leave_one_out, parts",
    "12 ablations with `centered_relevance` as prior": "centered relevance + 12 ablations",
    "12 ablations": "12 ablations",
    "`input_x_gradient`": "gradient x input",
    "control: longer parts are worth more": "control: longer is more",
}


def test_the_long_texts_on_the_page_are_those_of_the_stored_numbers():
    texts = list(long_truth.load(ROOT / "benchmarks" / "long_texts.npz").values())
    known = {}
    for size in (50, 150, 400):
        own = [one for one in texts if (one.model, one.size) == ("minilm", size)]
        known[size] = long_report.tables(own, "contrast"), len(own)
    page = (ROOT / "docs" / "language-models.md").read_text()
    head, _, *told = page[page.index("| method | passes | 50 tokens, ") :].split("\n\n")[0].splitlines()
    assert head == "| method | passes | " + " | ".join(f"{n} tokens, {k} texts" for n, (_, k) in known.items()) + " |"
    assert [line.split("|")[1].strip() for line in told] == list(LONG)
    for line, name in zip(told, LONG.values(), strict=True):
        for cell, (found, _) in zip(line.split("|")[3:-1], known.values(), strict=True):
            shown = ""
            if name in found:
                own, best = (long_report.both(found[one]) for one in (name, long_methods.BEST))
                shown = answer_report.interval(own)
                shown += "" if name == long_methods.BEST else f" ({answer_report.interval(own - best)})"
            assert cell.strip() == shown, (name, cell)
    own = long_report.tables([one for one in texts if (one.model, one.size) == ("smollm2", 50)], "contrast")
    names = ("leave_one_out, tokens", long_methods.BEST, "centered relevance + 12 ablations")
    tokens, best, both = (long_report.both(own[name]) for name in names)
    told = page[page.index("- In SmolLM2, on 7 texts of 50 tokens") :].split("\n- ")[0].replace("\n  ", " ")
    assert len(best) == 7
    for values in (tokens, best, tokens - best, both - best):
        assert answer_report.interval(values) in told
