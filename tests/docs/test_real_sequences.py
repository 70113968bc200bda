"""The networks of docs/sequences.md and docs/graphs.md in float64, against what is erased, silenced or symmetric."""

import pathlib
import re

import pytest
import torch

from layerlens import Lens, as_target, symbol

pytestmark = pytest.mark.slow

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def page(name, *numbers, until=None):
    """The names that blocks of a page define, up to a line of the last one."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{name}.md").read_text(), flags=re.S)
    names: dict[str, object] = {"__name__": "page"}
    for number in numbers:
        code = blocks[number] if until is None or number != numbers[-1] else blocks[number].split(until)[0]
        exec(compile(code, name, "exec"), names)
    return names


def test_a_letter_is_made_of_its_own_strokes():
    names = page("sequences", 0, until="words = ")
    reader, ink = names["reader"].double(), names["ink"]
    lens = Lens(reader, class_names=names["characters"], forward=lambda model, ink: model(1 - 2 * ink))
    picture = ink("QUIET").double()
    target = {place: as_target(symbol(place), names=names["characters"]) for place in range(5)}
    columns = [names["columns"]("QUIET", place) for place in range(5)]
    with torch.no_grad():
        target = {place: one.resolve(reader(1 - 2 * picture)) for place, one in target.items()}
    own = []
    for place in range(5):
        found = lens.relevance(picture, target=symbol(place))
        assert found.target == f"{'QUIET'[place]} as symbol {place} of Q U I E T"
        assert float(found.ledger.relative.max()) < 1e-12
        lost = []
        for where in columns:
            without = picture.clone()
            without[..., where] = 0
            with torch.no_grad():
                lost.append(float(found.score - target[place](reader(1 - 2 * without))))
        shares = [float(found.tensor[..., where].clamp(min=0).sum()) for where in columns]
        assert lost.index(max(lost)) == place  # erasing a letter costs its own score most
        own.append(shares.index(max(shares)) == place)
    assert sum(own) == 4  # not the I, which has hardly any ink


def test_the_voice_is_heard_also_in_digital_silence():
    names = page("sequences", 0, 4, until="with torch.no_grad()")
    detector, parts = names["detector"].double(), names["parts"]
    sound = sum(parts.values()).double().unsqueeze(0)  # zeros between the sounds
    found = Lens(detector).relevance(sound, target=(28,))
    assert float(found.ledger.relative.max()) < 1e-12 and bool(found.tensor.isfinite().all())
    share = float(found.tensor[0, names["spans"]["voice"]].abs().sum() / found.tensor.abs().sum())
    with torch.no_grad():
        lost = {name: float(found.score - detector(sound - part.double())[0, 28]) for name, part in parts.items()}
    assert share > 0.9 and max(lost, key=lost.get) == "voice"


def test_atoms_that_symmetry_maps_on_each_other_have_the_same_share():
    names = page("graphs", 0, 1, until="with torch.no_grad():\n    energies")
    net, numbers = names["net"].double(), names["numbers"]
    places, cell = names["places"].double(), names["cell"].double()
    crystal = names["neighbors"](cell, places)

    def forward(model, numbers):
        return torch.stack([model(row, places, crystal)[0] for row in numbers])

    found = Lens(net, forward=forward).relevance(numbers, target=lambda energies: energies.sum(dim=1))
    assert float(found.ledger.relative.max()) < 1e-12
    shares = found.tensor[0]
    for pair in ((0, 1), (2, 3), (4, 7), (5, 6)):
        assert float(shares[pair[0]]) == pytest.approx(float(shares[pair[1]]), rel=1e-4)
    with torch.no_grad():
        energies = net(numbers[0], places, crystal)[0] + net.reference.weight[0, numbers[0] - 1]
    assert float(energies.mean()) == pytest.approx(-7.36769, abs=2e-5)  # as published
