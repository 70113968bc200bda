"""One example of every figure, from trained models, for `python -m benchmarks.figures`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from layerlens import Lens, contrast, faithfulness, plotting
from layerlens.demo import efficientnet, embedded
from layerlens.demo.train_digits import make_scenes, split_digits
from layerlens.plotting import Plot
from layerlens.targets.units import neuron

Draw = Callable[..., Plot]
"""Makes a figure; takes `width=`."""

STAGES = ("stem", "blocks.0", "blocks.1", "blocks.2", "head")


def photographs() -> Iterator[tuple[str, Draw]]:
    """EfficientNet-Lite0 on three photographs."""
    lens = Lens(efficientnet.load_efficientnet(), class_names=efficientnet.class_names())
    photos = efficientnet.photographs()
    inputs = {name: efficientnet.preprocess(photo) for name, photo in photos.items()}
    x = next(iter(inputs.values()))
    depths = ["_conv_stem", "_blocks.2", "_blocks.5", "_blocks.10", "_blocks.15"]
    relevance = lens.relevance(x, layers="_blocks.*")
    yield "heatmap", partial(plotting.heatmap, relevance)
    cams = [lens.grad_cam(one) for one in inputs.values()]
    yield "overlay_grid", partial(plotting.overlay_grid, cams)
    maps = [lens.grad_cam(x), relevance]
    maps += [lens.saliency(x, method=name) for name in ("gradient", "integrated_gradients")]
    yield "compare_methods", partial(plotting.compare_methods, maps)
    yield "activation_mosaic", partial(plotting.activation_mosaic, lens.layer_maps(x, depths))
    yield "channels", partial(plotting.channels, lens.activation_maps(x, "_blocks.10"))
    yield "relevance_flow", partial(plotting.relevance_flow, relevance)
    yield "model_map", partial(plotting.model_map, lens.layers(x))
    yield (
        "layer_profile (log)",
        partial(plotting.layer_profile, lens.jacobian(x, ["_conv_stem", "_blocks.*"], null=True), scale="log"),
    )
    yield "receptive_field", partial(plotting.receptive_field, lens.receptive_field(x, "_blocks.3"))
    crops, chance = [], np.random.default_rng(0)
    for picture in photos.values():
        for _ in range(16):
            side = int(chance.integers(120, 260))
            left, top = (int(chance.integers(0, size - side)) for size in picture.size)
            crops.append(efficientnet.preprocess(picture.crop((left, top, left + side, top + side)))[0])
    alike = lens.similarity(torch.stack(crops), ["_bn0", "_blocks.*", "_bn1", "_fc"], batch_size=24)
    yield "matrix", partial(plotting.matrix, alike)
    strongest = lens.top_inputs(torch.stack(crops), "_blocks.10", units=[6, 70, 96], by="activation", count=6)
    yield "top_inputs", partial(plotting.top_inputs, strongest)
    wanted = [neuron("_blocks.10", unit) for unit in strongest.units]
    made = lens.feature_visualization(wanted, (3, 160, 160), bounds=(-1, 1), steps=120)
    yield "feature_gallery", partial(plotting.feature_gallery, made, strongest)
    several = {
        name: faithfulness.insertion(lens.model, x, one) for name, one in zip(("CAM", "LRP"), maps, strict=False)
    }
    yield "faithfulness_curve", partial(plotting.faithfulness_curve, list(several.values()), labels=list(several))


def digits() -> Iterator[tuple[str, Draw]]:
    """The embedded network on digits in clutter."""
    _, test = split_digits(0)
    images, labels, _ = make_scenes(test, range(100), seed=5)
    x = images.float() / 255
    lens = Lens(embedded.load_digit_net(), class_names=embedded.CLASS_NAMES)
    attacked = lens.attack_curve(x, labels, method=("fgsm", "pgd"), bounds=(0, 1))
    yield "curves", partial(plotting.curves, attacked)
    drift = lens.attack_drift(x, labels, list(STAGES), eps=(2 / 255, 8 / 255), bounds=(0, 1))
    yield "layer_profile", partial(plotting.layer_profile, drift)
    made = lens.feature_visualization([neuron("blocks.1", unit) for unit in (4, 9, 17)], (1, 48, 48), steps=60)
    yield "feature_visualization", partial(plotting.feature_visualization, made, curve=True)
    found = lens.compare_groups(x, ["round" if one in (0, 6, 8, 9) else "straight" for one in labels.tolist()])
    yield "group_effects (maps)", partial(plotting.group_effects, found)
    yield "group_effects (units)", partial(plotting.group_effects, found.activations["head"])
    few = x[:6]
    maps = {"gradient": lens.saliency(few), "relevance": lens.relevance(few), "Grad-CAM": lens.grad_cam(few)}
    board = lens.evaluate(few, maps)
    yield "leaderboard", partial(plotting.leaderboard, board)
    yield "method_grid", partial(plotting.method_grid, maps, board=board)

    torch.manual_seed(0)
    net = embedded.DigitNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    with Lens(net).watch(optimizer, every=2, data=x[:32]) as watching:
        for chosen in torch.randint(len(x), (40, 32)):
            loss = nn.functional.cross_entropy(net(x[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watching.log(loss=loss)
    yield "training", partial(plotting.training, watching.history, "update ratio")
    yield "training (signed)", partial(plotting.training, watching.history, "activation mean")
    yield "gradient_flow", partial(plotting.gradient_flow, watching.history)


def texts() -> Iterator[tuple[str, Draw]]:
    """SmolLM2 on a fact, and MiniLM on a sentence."""
    from tests.real_models import minilm, smollm2

    model, tokenizer = smollm2()
    lens = Lens(model, tokenizer=tokenizer)
    prompt, fact = "The capital of France is", contrast(" Paris", " Rome")
    words = lens.saliency(prompt, target=fact, method="leave_one_out")
    yield "tokens", partial(plotting.tokens, words)
    yield "heatmap (tokens)", partial(plotting.heatmap, words)
    yield (
        "attention",
        partial(plotting.attention, lens.attention(prompt, ["model.layers.10.self_attn", "model.layers.23.self_attn"])),
    )
    yield (
        "attention (mean)",
        partial(plotting.attention, lens.attention(prompt, "model.layers.23.self_attn"), heads="mean"),
    )
    yield "sensitivity", lens.ablate(prompt, by="head", target=fact, count=12).plot
    traced = lens.patch("The capital of Italy is", prompt, "model.layers.*", by="layer_position", target=fact)
    yield "matrix (signed)", traced.plot
    encoder, reader = minilm()
    long = lens_of(encoder, reader).relevance(
        "The weather was dull, and a puppy played with a ball that somebody had left in the garden, while its owner "
        "was reading a book about the history of trains on a bench below the old tree.",
        target=lambda output: output.last_hidden_state.mean(dim=1)[:, 0],
    )
    yield "tokens (sentence)", partial(plotting.tokens, long)
    yield "relevance_flow (MiniLM)", partial(plotting.relevance_flow, long)


def lens_of(model: nn.Module, tokenizer: Any) -> Lens:
    """A lens of a model of texts."""
    return Lens(model, tokenizer=tokenizer)


def others() -> Iterator[tuple[str, Draw]]:
    """A generator of faces, and a speaker encoder on a tone in noise."""
    from tests.real_models import face_generator, speaker_encoder

    faces = Lens(face_generator())
    z = torch.randn(1, 100, 1, 1, generator=torch.Generator().manual_seed(11))
    walk = faces.latent_traversal(z, [3, 10, 31, 77], steps=(-3, -2, -1, 0, 1, 2, 3))
    yield "latent_traversal", partial(plotting.latent_traversal, walk)
    yield "activation_mosaic (generator)", partial(plotting.activation_mosaic, faces.layer_maps(z, nn.ConvTranspose2d))
    voice = Lens(speaker_encoder())
    noise = 0.1 * torch.rand(1, 60, 40, generator=torch.Generator().manual_seed(0))
    mels = noise.clone()
    mels[:, 20:40, 5:15] += 1
    with torch.no_grad():
        direction = voice.model(mels[:, 20:40]) - voice.model(noise)
    heard = voice.relevance(mels, target=lambda embedding: (embedding * direction).sum(dim=1))
    yield "timeseries", partial(plotting.timeseries, heard)
    yield "heatmap (series)", partial(plotting.heatmap, heard)
    yield "recurrent_states", partial(plotting.recurrent_states, voice.recurrent_states(mels))


@functools.cache
def examples() -> dict[str, Draw]:
    """Every figure by its name."""
    return {name: draw for made in (photographs, digits, texts, others) for name, draw in made()}
