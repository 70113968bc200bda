"""Long work on generated texts and pictures shows its progress, and an interrupt leaves the model as it was."""

import io
import signal

import pytest
import torch
from torch import nn

from layerlens import Lens
from tests.cases import normal
from tests.snapshot import Snapshot

from .tiny_texts import llama, tokenizer

PROMPTS = ["the cat sat. it ran to the house.", "words of text. the town"]


def sample(model, x):
    for _ in range(4):
        x = 0.5 * x + model(x)
    return x


def answers(model, progress=None):
    return Lens(model, tokenizer=tokenizer()).explain_answer(
        PROMPTS, sources="word", parts="token", passes=40, max_new_tokens=8, batch_size=1, progress=progress
    )


def steps(model, progress=None):
    return Lens(model, tokenizer=tokenizer()).generate(
        PROMPTS[0], max_new_tokens=8, record=["relevance", "attention", "logit_lens"], progress=progress
    )


def pictures(model, progress=None):
    return Lens(model).explain_sampling(normal(1, 3, 8, 8), loop=sample, maps=2, batch_size=1, progress=progress)


def denoiser():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())


WORK = {
    "answers": (answers, llama, ("prompts", "writing", "relevance", "ablations"), "model.layers.0.mlp"),
    "steps": (steps, llama, ("writing", "relevance"), "model.layers.0.mlp"),
    "pictures": (pictures, denoiser, ("explaining",), "0"),
}


@pytest.mark.parametrize("name", WORK)
def test_long_work_shows_its_progress_where_asked(name, monkeypatch):
    work, make, labels, _ = WORK[name]
    for shown in (True, False):
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        work(make(), progress=shown)
        assert [label in stream.getvalue() for label in labels] == [shown] * len(labels)
        assert shown or not stream.getvalue()


@pytest.mark.parametrize("name", WORK)
def test_an_interrupt_comes_soon_and_leaves_the_model_as_it_was(name):
    work, make, _, layer = WORK[name]
    model, calls, at = make(), [], 0

    def interrupt(*_):
        calls.append(0)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)

    handle = model.get_submodule(layer).register_forward_hook(interrupt)
    try:
        before = Snapshot(model, torch.zeros(1))
        work(model)
        total = len(calls)
        for at in (2, total // 2, total - 1):
            calls.clear()
            with pytest.raises(KeyboardInterrupt):
                work(model)
            assert at <= len(calls) <= at + 1
            before.check()
            assert "forward" not in vars(model)
    finally:
        handle.remove()
