"""A trained model of a picture and a question: the answer and its map follow the picture."""

import pytest
import torch

from layerlens import Lens

pytest.importorskip("sklearn")
from layerlens.demo.questions import QUESTIONS, WEIGHTS, encode, pairs, question_net, truth


@pytest.mark.slow
def test_it_answers_about_digits_that_it_has_not_seen():
    model, record = question_net()
    pictures, shown = pairs(500, seed=2)
    assert WEIGHTS.stat().st_size < 500_000 and all(share > 0.8 for share in record["accuracy"].values())
    for question in QUESTIONS:
        with torch.no_grad():
            found = model(pictures, encode(question).expand(500, -1)).argmax(1)
        assert float((found == truth(question, shown)).double().mean()) > record["accuracy"][question] - 0.06


@pytest.mark.slow
@pytest.mark.parametrize("method", ["relevance", "occlusion"])
def test_the_answer_and_its_map_follow_the_picture(method):
    lens = Lens(question_net()[0])
    pictures, shown = pairs(40, seed=3)
    exchanged = torch.cat([pictures[..., 8:], pictures[..., :8]], dim=-1)  # the digits change sides
    shares = {}
    for given, known in ((pictures, shown), (exchanged, shown.flip(1))):
        for side, question in enumerate(QUESTIONS[:2]):
            asked = encode(question).expand(len(given), -1)
            right = lens.run((given, asked)).argmax(1) == truth(question, known)
            assert float(right.double().mean()) > 0.8
            values = lens.saliency((given, asked), method=method).values["0"]
            halves = values.abs().sum(dim=(1, 2)).reshape(len(given), 2, 8).sum(dim=2)
            shares[question, given is exchanged] = float((halves.argmax(1) == side)[right].double().mean())
    assert min(shares.values()) > 0.8, shares
