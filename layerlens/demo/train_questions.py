"""Train the model of pictures and questions: `python -m layerlens.demo.train_questions`, about a minute on one core."""

from __future__ import annotations

import json
import time

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from .questions import QUESTIONS, RECORD, WEIGHTS, QuestionNet, digits, encode, pairs, side_by_side, truth


def train(steps: int = 1200, batch: int = 64, seed: int = 0) -> None:
    """Train, and write the weights and a record of the accuracy on held-out digits."""
    torch.manual_seed(seed)
    model, known, draw = QuestionNet(), digits(held_out=False), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    start = time.perf_counter()
    for step in range(steps):
        question = QUESTIONS[step % 3]
        pictures, shown = side_by_side(known, batch, draw)
        scores = model(pictures, encode(question).expand(batch, -1))
        optimizer.zero_grad()
        F.cross_entropy(scores, truth(question, shown)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.eval()
    pictures, shown = pairs(2000)
    with torch.no_grad():
        found = {one: model(pictures, encode(one).expand(len(shown), -1)).argmax(1) for one in QUESTIONS}
    right = {one: round(float((answer == truth(one, shown)).double().mean()), 4) for one, answer in found.items()}
    save_file(model.state_dict(), WEIGHTS)
    about = {"accuracy": right, "seed": seed, "steps": steps, "batch": batch,
             "parameters": sum(one.numel() for one in model.parameters())}  # fmt: skip
    RECORD.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"{time.perf_counter() - start:.0f} s, {about}")


if __name__ == "__main__":
    train()
