"""Targets of models that read with CTC, against the sum over all paths and a reading by hand."""

import itertools

import pytest
import torch
from torch import nn

from layerlens import Lens, contrast, symbol, transcript
from layerlens.errors import TargetError
from layerlens.targets.target import as_target

NAMES = ["-", "H", "O", "T"]


def written(*rows):
    """An output whose best classes spell the rows, `-` the blank."""
    steps = torch.tensor([[NAMES.index(one) for one in row] for row in rows])
    noise = torch.rand(*steps.shape, len(NAMES), generator=torch.Generator().manual_seed(0))
    return (noise + 5 * nn.functional.one_hot(steps, len(NAMES))).double()


def test_a_symbol_is_scored_at_its_steps_in_each_sample():
    output = written("-HH-O-OT", "H-TT-OO-")
    second = as_target(symbol(1), names=NAMES).resolve(output)
    assert second.each == ("O as symbol 1 of H O O T", "T as symbol 1 of H T O")
    expected = torch.stack([output[0, 4, 2], output[1, 2:4, 3].mean()])
    assert torch.equal(second(output), expected)
    twice = output[[1, 0, 1]]  # a method repeats and reorders rows
    assert torch.equal(second(twice, torch.tensor([1, 0, 1])), expected[[1, 0, 1]])
    changed = torch.zeros_like(output)  # reads otherwise, and is scored at the steps of the original
    assert torch.equal(second(changed), torch.zeros(2).double())
    why = as_target(contrast(symbol(-1), symbol(-1, "H")), names=NAMES).resolve(output)
    steps = torch.stack([output[0, 7, 3] - output[0, 7, 1], (output[1, 5:7, 2] - output[1, 5:7, 1]).mean()])
    assert torch.allclose(why(output), steps, rtol=1e-12)


def test_another_blank_and_a_list_of_symbols():
    output = written("TTHTOT", "HTHTTT")
    read = as_target([symbol(0, blank=3), symbol(1, blank=3)], names=NAMES).resolve(output)
    assert read.each == ("H as symbol 0 of H O", "H as symbol 1 of H H")
    assert torch.equal(read(output), torch.stack([output[0, 2, 1], output[1, 2, 1]]))


@pytest.mark.parametrize("text", ["HOT", "HOO", "T"])
def test_a_transcript_is_the_sum_over_all_paths(text):
    output = written("H-O-T", "HOO-O")
    probabilities = output.softmax(dim=2)
    expected = torch.zeros(2).double()
    for path in itertools.product(range(4), repeat=5):
        if "".join(NAMES[one] for one, _ in itertools.groupby(path) if one) == text:
            expected += torch.stack([probabilities[:, k, one] for k, one in enumerate(path)]).prod(dim=0)
    found = as_target(transcript(text), names=NAMES)
    assert found.label == f"log p({text!r})"
    assert torch.allclose(found(output), expected.log(), rtol=1e-9)
    assert torch.allclose(as_target(transcript([NAMES.index(one) for one in text]))(output), expected.log(), rtol=1e-9)


def test_its_relevance_closes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x = torch.randn(2, 6, 3).double()
    lens = Lens(net, class_names=NAMES)
    for target in (transcript("HO"), contrast(transcript("HO"), transcript("TO"))):
        ledger = lens.relevance(x, target=target).ledger
        assert float(ledger.relative.max()) < 1e-12 and float(ledger.inputs.abs().min()) > 1e-3
    places = lens.relevance(x, target=contrast((2, "H"), (2, "O")))  # names in places are read when they are known
    assert places.target == "(2, 'H') - (2, 'O')"
    assert torch.allclose(places.score, net(x)[:, 2, 1] - net(x)[:, 2, 2])


def test_what_does_not_fit_is_refused():
    output = written("-HH-O-OT", "--------")
    with pytest.raises(TargetError, match=r"symbol\(4\): sample 0 has 4 symbol\(s\): H, O, O, T. The class of"):
        as_target(symbol(4), names=NAMES).resolve(output)
    with pytest.raises(TargetError, match=r"sample 1 has 0 symbol.*nothing but blanks"):
        as_target(symbol(0), names=NAMES)(output)
    with pytest.raises(TargetError, match=r"\(batch, step, class\); got \(8, 2, 4\). For .*transpose\(0, 1\)"):
        as_target(transcript("HOT"), names=NAMES)(output.transpose(0, 1), torch.arange(2))
    with pytest.raises(TargetError, match="does not fit into the 8 steps"):
        as_target(transcript("HHHHH"), names=NAMES)(output)
    with pytest.raises(TargetError, match="holds class 0; the output has classes 0 to 3, and 0 is the blank"):
        transcript([0, 1])(output)
    with pytest.raises(TargetError, match="class 9 at step 2"):
        symbol(0, 9).resolve(output[:1])(output[:1])
    with pytest.raises(TargetError, match="give the number of a symbol"):
        symbol("H")
