"""The small diffusion model: its words, its noise levels, and that its pictures follow the prompt."""

import json
from importlib import resources

import pytest
import torch

from layerlens import Lens
from layerlens.demo.digit_diffusion import COLORS, RECORD, alphas, load_digit_diffusion, sample, tokens
from layerlens.errors import InputError


def test_prompts_are_read():
    assert tokens(["a red three above a blue seven", "a"])[1].tolist() == [2, 0, 0, 0, 0, 0, 0, 0]
    for prompt in ("a purple three", "", "a " * 9):
        with pytest.raises(InputError, match="1 to 8 words"):
            tokens(prompt)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_noise_levels_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(alphas(), scheduler.alphas_cumprod)


def test_the_record_is_of_these_weights():
    record = json.loads((resources.files("layerlens.demo") / "data" / RECORD).read_text())
    model = load_digit_diffusion()
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert record["drawn"]["color"] > 0.9


def names_of_colors(halves):
    """The nearest color of the brightest places of each half."""
    known = torch.tensor(list(COLORS.values()))
    places = [half.sum(0).flatten().topk(8).indices for half in halves]
    bright = torch.stack([half.flatten(1)[:, some].mean(1) for half, some in zip(halves, places, strict=True)])
    return [list(COLORS)[k] for k in torch.cdist(bright, known).argmin(1).tolist()]


@pytest.mark.slow
def test_pictures_and_maps_follow_the_words():
    model = load_digit_diffusion()
    pairs = [(one, two) for one in COLORS for two in COLORS if one != two]
    words = tokens([f"a {one} three left of a {two} seven" for one, two in pairs])
    noise = torch.randn(len(pairs), 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pictures = (sample(model, noise, words) + 1) / 2
    left, right = names_of_colors(pictures[..., :12]), names_of_colors(pictures[..., 12:])
    assert sum(pair == found for pair, found in zip(pairs, zip(left, right, strict=True), strict=True)) > 0.8 * len(
        pairs
    )
    prompt = "a red three left of a blue seven"
    found = Lens(model).explain_sampling((noise[:1], tokens(prompt)), loop=sample, words=prompt.split(), maps=2)
    sides = {word: found.map_of(word).abs().sum(0) for word in ("red", "blue")}
    assert found.ledger.relative.max() < 1e-5
    assert sides["red"][0] > sides["red"][1] and sides["blue"][1] > sides["blue"][0]
