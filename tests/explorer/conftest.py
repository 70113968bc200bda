"""Explorers of small models, made once."""

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Lens
from layerlens.demo.embedded import CLASS_NAMES, load_digit_net, sample_pictures

HOSTILE = '</script><script>alert("x")</script> & <b>seven</b>'


class Attention(nn.Module):
    """Two heads over tokens, with the layers next to them."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.mlp = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)  # (batch, head, token, 4) each
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(x).relu()


class Reader(nn.Module):
    """Two layers of attention over tokens; scores each token at every place."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.blocks = nn.Sequential(Attention(), Attention())

    def forward(self, input_ids):
        return self.head(self.blocks(self.embed(input_ids)))


class Words:
    """A token for each word: its length."""

    def __call__(self, texts, return_tensors=None, padding=None, add_special_tokens=True):
        return {"input_ids": torch.tensor([[len(word) % 20 for word in text.split()] for text in texts])}

    def convert_ids_to_tokens(self, ids):
        return [f"<b>{index}</b>" for index in ids]


class Sensors(nn.Module):
    """An LSTM over sensors that names one of two classes."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.fixture(scope="session")
def digits():
    """The lens, the pictures, and the explorer of three pictures and two targets, one of them with a hostile name."""
    names = [*CLASS_NAMES[:7], HOSTILE, *CLASS_NAMES[8:]]
    lens, images = Lens(load_digit_net(), class_names=names), sample_pictures()[0][[7, 3, 1]]
    map_of_seven = lens.relevance(images[:1], target=7)
    return lens, images, lens.explore(
        images, targets=[7, "three"], labels=[HOSTILE, "three", "one"], title=HOSTILE,
        results={HOSTILE: map_of_seven, "Layers": lens.layers()},
    )  # fmt: skip


@pytest.fixture(scope="session")
def words():
    """The lens, the texts, and their explorer: token ids, attention, texts of different lengths."""
    torch.manual_seed(0)
    texts = ["a bb ccc dddd", "aaaa bb c"]
    lens = Lens(Reader().eval(), tokenizer=Words())
    return lens, texts, lens.explore(texts, targets=[(-1, 4), (-1, 5)], methods=["gradient", "leave_one_out"])


@pytest.fixture(scope="session")
def series():
    """The lens, the series, and their explorer."""
    torch.manual_seed(0)
    lens, x = Lens(Sensors(), feature_names=["east", "<i>north</i>", "up"]), torch.randn(2, 30, 3)
    return lens, x, lens.explore(x, targets=[0, 1])


@pytest.fixture
def opened(browser, request, tmp_path):
    """Open the explorer of a fixture: the page, and the explorer; what goes wrong on the page fails the test."""
    troubles, pages = [], []

    def show(name, **options):
        explorer = request.getfixturevalue(name)[2]
        path = explorer.save(tmp_path / f"{name}.html")
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.on(
            "request",
            lambda one: troubles.append(one.url) if not one.url.startswith(("data:", path.as_uri(), "about:")) else 0,
        )
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(path.as_uri())
        pages.append(page)
        return page, explorer

    yield show
    for page in pages:
        page.close()
    assert troubles == []


def read(explorer, view, *index):
    """A number, or an array, of the page."""
    return explorer.array(view)[index]


def layer_named(explorer, name):
    """The place of a layer."""
    return next(place for place, one in enumerate(explorer.content["layers"]) if one["name"] == name)


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def last_number(text):
    return float(text.rsplit(":", 1)[1])


def same(text, value):
    """Whether a text ends in the six digits of a float32 number."""
    assert last_number(text) == float(f"{float(np.float32(value)):.6g}"), (text, value)


def reading(page):
    return page.inner_text("#reading")
