"""A picture and words in one model: parts of both left out by hand in plain torch, and masked together."""

import pytest
import torch
from torch import nn

from layerlens import Lens, saliency
from layerlens.analyzers.saliency.perturbation.rise import SmoothMasks, draw
from layerlens.errors import OptionError
from tests.cases import normal


class Reader(nn.Module):
    """A picture (batch, 2, 4, 6) and words (batch, 3), which multiply; or their sum."""

    def __init__(self, *, linear=False):
        super().__init__()
        torch.manual_seed(0)
        self.see, self.read = nn.Linear(48, 5), nn.Embedding(9, 4)
        self.words, self.answer, self.linear = nn.Linear(12, 5), nn.Linear(5, 2), linear

    def forward(self, picture, words):
        return self.of(picture, self.read(words))

    def of(self, picture, embedded):
        seen, said = self.see(picture.flatten(1)), self.words(embedded.flatten(1))
        return self.answer(seen + said if self.linear else torch.tanh(seen) * said)


PICTURE, WORDS = normal(2, 2, 4, 6).double(), torch.tensor([[3, 1, 4], [8, 2, 2]])
X = {"picture": PICTURE, "words": WORDS}
LEFT = torch.tensor([0, 0, 0, 1, 1, 1]).expand(1, 1, 4, 6)
"""Two parts of a picture, its left and its right half."""


def model(**kind):
    return Reader(**kind).double().eval()


def by_hand(net, words_by=None):
    """The falls of the score of class 1, with halves of the picture replaced by the mean of their channel, and words
    by all other words, or by one."""
    with torch.no_grad():
        whole, text = net(PICTURE, WORDS)[:, 1], net.read(WORDS)
        halves, words = torch.zeros(2, 2).double(), torch.zeros(2, 3).double()
        for row in range(2):
            one, own = PICTURE[row], text[row]
            mean = one.mean(dim=(1, 2), keepdim=True)
            for half in range(2):
                changed = torch.where(LEFT[0] == half, mean, one)
                halves[row, half] = whole[row] - net.of(changed[None], own[None])[0, 1]
            for place in range(3):
                fills = [own[other] for other in range(3) if other != place] if words_by is None else [words_by]
                for fill in fills:
                    changed = own.clone()
                    changed[place] = fill
                    words[row, place] += (whole[row] - net.of(one[None], changed[None])[0, 1]) / len(fills)
    return halves, words


def test_leaving_out_patches_and_words_is_what_plain_torch_finds():
    net = model()
    halves, words = by_hand(net)
    found = saliency(net, X, target=1, method="leave_one_out", features={"picture": LEFT})
    for half in range(2):
        values = found.values["picture"][LEFT.expand(2, 2, 4, 6) == half].reshape(2, -1)
        torch.testing.assert_close(values.double(), halves[:, half : half + 1].expand_as(values), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.values["words"].double(), words, rtol=1e-5, atol=1e-6)
    assert found.units == "score" and found.cost == "8 forward passes: 2 for picture, 6 for words"
    assert found.settings["fill"] == "picture: mean, words: drawn"
    assert not found.standard_error["picture"].any() and found.standard_error["words"][0].all()
    torch.testing.assert_close(found.score, net(PICTURE, WORDS)[:, 1].detach())


def test_fills_by_input_and_words_in_groups():
    net = model()
    table = net.read.weight.detach()
    options = {"target": 1, "method": "leave_one_out"}
    _, words = by_hand(net, table[7])
    found = saliency(net, X, fill=7, **options).values["words"]
    torch.testing.assert_close(found.double(), words, rtol=1e-5, atol=1e-6)
    grouped = {"words": torch.tensor([2, 2, 3]), "picture": LEFT}
    found = saliency(net, X, fill={"words": 7, "picture": "blur"}, features=grouped, **options)
    with torch.no_grad():
        text = net.read(WORDS)
        text[:, :2] = table[7]
        drop = (net(PICTURE, WORDS) - net.of(PICTURE, text))[:, 1]
    torch.testing.assert_close(found.values["words"][:, :2].double(), drop[:, None].expand(2, 2), rtol=1e-5, atol=1e-6)
    assert found.standard_error is None and found.settings["features"] == 4
    alone = saliency(net, X, hold="picture", **options)
    both = saliency(net, X, **options)
    assert torch.equal(alone.tensor, both.values["words"]) and alone.cost.startswith("4 forward passes (draws) per")
    for wrong, message in (
        ({"fill": {"picture": "drawn"}}, "fill='drawn' is for token ids; for input 'picture' give 'mean'"),
        ({"fill": "blur"}, "unknown fill 'blur'.*For other inputs give a dict by input name: fill=.*'blur'"),
        ({"features": grouped}, r"cannot be grouped by features=. Give one fill for all, fill=\{'words': 'zero'\}"),
        ({"fill": {"sound": "zero"}}, "input name in fill= 'sound'"),
    ):
        with pytest.raises(OptionError, match=message):
            saliency(net, X, **wrong, **options)
    with pytest.raises(OptionError, match=r"For the other input: features=\{'picture': 32\}"):
        saliency(net, X, target=1, method="shapley_sampling", features=32)


def test_centered_relevance_is_from_the_mean_of_each_input():
    net = model(linear=True)
    found = saliency(net, X, target=1, method="centered_relevance")
    with torch.no_grad():
        seen = net.see.weight.T @ net.answer.weight[1]
        said = (net.words.weight.T @ net.answer.weight[1]).reshape(3, 4)
        text = net.read(WORDS)
    expected = (PICTURE - PICTURE.mean(dim=(2, 3), keepdim=True)) * seen.reshape(2, 4, 6)
    torch.testing.assert_close(found.values["picture"], expected)
    torch.testing.assert_close(found.values["words"], ((text - text.mean(dim=1, keepdim=True)) * said).sum(-1))
    one = {"picture": torch.arange(24).reshape(1, 1, 4, 6)}
    left_out = saliency(net, X, target=1, method="leave_one_out", features=one).values["picture"]
    torch.testing.assert_close(left_out[:, 0].double(), expected.sum(dim=1), rtol=1e-5, atol=1e-5)


# -- RISE --------------------------------------------------------------------------------------------------------------


def test_masks_over_all_inputs_at_once_find_the_terms_of_a_sum():
    net = model(linear=True)
    found = saliency(net, X, target=1, method="rise", samples=600, cells={"picture": 2})
    with torch.no_grad():
        said = (net.words.weight.T @ net.answer.weight[1]).reshape(3, 4)
        terms = (net.read(WORDS) * said).sum(-1)
        seen = PICTURE.flatten(1) @ net.see.weight.T @ net.answer.weight[1]
    torch.testing.assert_close(found.values["words"], terms, rtol=0.02, atol=0.02)
    picture = found.values["picture"][:, 0].mean(dim=(1, 2)) * 6  # 2 x 3 cells
    torch.testing.assert_close(picture, seen, rtol=0.1, atol=0.1)
    assert found.units == "score per cell kept" and found.settings["cells"] == {"picture": 2}
    one = saliency(net, X, target=1, method="rise", hold="picture")
    torch.testing.assert_close(one.tensor, terms, rtol=1e-3, atol=1e-4)
    assert one.units == "score per place kept"


@pytest.mark.parametrize("sampling", ["balanced", "random"])
def test_masks_of_two_inputs_are_independent(sampling):
    masks = [SmoothMasks([4, 6], 2), SmoothMasks([5], 0)]
    draw(masks, 2048, 0.5, sampling, 0)
    kept = torch.cat([one.kept for one in masks], dim=1).double()
    assert kept.shape[1] == 3 * 4 + 5
    together = torch.corrcoef(kept.T) - torch.eye(kept.shape[1])
    assert float(together.abs().max()) < 0.09 and float((kept.mean(dim=0) - 0.5).abs().max()) < 0.04


# -- tokens that hold a place for a picture ----------------------------------------------------------------------------


class Placed(Reader):
    """Words, of which those with the id 0 are places of the picture; the largest of each feature counts."""

    def of_ids(self, picture, ids):
        text = self.read(ids)
        seen = self.see(picture.flatten(1))[:, None, :4].expand_as(text)
        return torch.where((ids == 0).unsqueeze(-1), seen, text)

    def forward(self, picture, ids):
        return self.answer[0](self.of_ids(picture, ids).amax(dim=1))


def test_places_of_a_picture_are_neither_left_out_nor_drawn():
    torch.manual_seed(1)
    net = Placed()
    net.answer = nn.ModuleList([nn.Linear(4, 2)])
    net = net.double().eval()
    ids = torch.tensor([[5, 0, 0, 0, 0, 7, 8]])
    x = {"picture": PICTURE[:1], "ids": ids}
    found = saliency(net, x, target=1, method="leave_one_out")
    assert found.cost.endswith("6 for ids")  # 3 words, 2 others for each; also words that are not the largest
    with torch.no_grad():
        drops = [net(**x)[0, 1] - net(PICTURE[:1], torch.tensor([[fill, 0, 0, 0, 0, 7, 8]]))[0, 1] for fill in (7, 8)]
    torch.testing.assert_close(found.values["ids"][0, 0].double(), sum(drops) / 2, rtol=1e-5, atol=1e-6)
    assert not found.values["ids"][0, 1:5].any()
    assert saliency(net, x, target=1, method="feature_ablation").settings["features"] == 24 + 3
    for method in ("rise", "auto", "centered_relevance"):
        assert not saliency(net, x, target=1, method=method).values["ids"][0, 1:5].any()


class Glimpse(nn.Module):
    """A convolution of a picture, and the mean of its words."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.see, self.read, self.answer = nn.Conv2d(1, 4, 3), nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, picture, words):
        return self.answer(self.see(picture).relu().mean(dim=(2, 3)) + self.read(words).mean(dim=1).tanh())


def test_auto_takes_methods_for_all_inputs_and_says_so():
    net = Lens(model())
    assert net.saliency(X).settings["chosen"].startswith("a picture and token ids, 27 features together")
    many = {"picture": normal(1, 1, 8, 8), "words": torch.arange(150)[None] % 9}
    found = Lens(Glimpse().eval()).saliency(many, target=1)
    assert found.settings["chosen"].startswith("a picture and token ids, 214 features together, too many for Shapley")
    assert set(found.values) == set(many) and all(values.any() for values in found.values.values())
    passes = net.saliency.methods(for_input=X).seconds
    assert {"leave_one_out", "rise", "centered_relevance", "shapley_sampling"} <= passes.keys()
