"""Two digits side by side and a question about them: a small trained model of a picture and words.

`python -m layerlens.demo.train_questions` made its weights, from scikit-learn's digits (8 x 8 pixels).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

DATA: Final = Path(__file__).parent / "data"
WEIGHTS: Final = DATA / "questions.safetensors"
RECORD: Final = DATA / "questions.json"

WORDS: Final = ("left", "right", "digit", "sum", "larger", "nine", "?")
QUESTIONS: Final = ("left digit ?", "right digit ?", "sum larger nine ?")
ANSWERS: Final = (*map(str, range(10)), "no", "yes")


class QuestionNet(nn.Module):
    """A picture `(batch, 1, 8, 16)` and the words of a question `(batch, words)` to scores of answers `(batch, 12)`.

    Two convolutions make 32 places of the picture; they and the words attend to each other in two layers, and the last
    word, the question mark, answers.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, width, 3, 2, 1), nn.ReLU())
        self.where = nn.Parameter(0.1 * torch.randn(4 * 8, width))
        self.read = nn.Embedding(len(WORDS), width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.answer = nn.Linear(width, len(ANSWERS))

    def forward(self, picture: Tensor, question: Tensor) -> Tensor:
        """Return the scores of the answers."""
        places = self.see(picture).flatten(2).transpose(1, 2) + self.where  # (batch, place, unit)
        scores: Tensor = self.answer(self.blocks(torch.cat([places, self.read(question)], dim=1))[:, -1])
        return scores


def encode(question: str) -> Tensor:
    """Return the words of a question as numbers, `(1, words)`.

    Example:
        >>> encode("left digit ?")
        tensor([[0, 2, 6]])
    """
    return torch.tensor([[WORDS.index(word) for word in question.split()]])


def question_net() -> tuple[QuestionNet, dict[str, Any]]:
    """Return the trained model in eval mode, and the record of its training: accuracy by question, seed, size."""
    model = QuestionNet()
    model.load_state_dict(load_file(WEIGHTS))
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return model.eval(), record


def pairs(count: int = 100, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return pictures of two digits that training has not seen, `(count, 1, 8, 16)`, and the digits, `(count, 2)`."""
    return side_by_side(digits(held_out=True), count, torch.Generator().manual_seed(seed))


def digits(*, held_out: bool) -> tuple[Tensor, Tensor]:
    """Return the digits of scikit-learn, `(n, 8, 8)` in 0..1, and their labels; every fifth is held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = (torch.arange(len(bunch.target)) % 5 == 0) == held_out
    return torch.from_numpy(bunch.images).float()[chosen] / 16, torch.from_numpy(bunch.target)[chosen].long()


def side_by_side(known: tuple[Tensor, Tensor], count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` pictures of two drawn digits, and the digits."""
    images, labels = known
    two = torch.randint(len(labels), (count, 2), generator=draw)
    return torch.cat([images[two[:, 0]], images[two[:, 1]]], dim=2).unsqueeze(1), labels[two]


def truth(question: str, shown: Tensor) -> Tensor:
    """Return the number of the right answer for digits `(n, 2)`, `(n,)`."""
    left, right = shown.unbind(1)
    if question == QUESTIONS[2]:
        return 10 + (left + right > 9).long()
    return left if question == QUESTIONS[0] else right
