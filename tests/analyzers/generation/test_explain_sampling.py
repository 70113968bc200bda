"""Sampling loops are explained exactly: as the whole loop in one graph, call by call, in the memory of one call."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import layerlens
from layerlens import Lens
from layerlens.errors import InputError, OptionError, TargetError
from tests.cases import normal

IDS = torch.tensor([[1, 4, 2]])


class Attending(nn.Module):
    """A picture's places attend to words."""

    def __init__(self, width=6, words=6):
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(width, 2, 3, padding=1)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(words, width), nn.Linear(words, width)
        self.level = nn.Linear(1, width)

    def forward(self, x, level, context):
        y = F.silu(self.stem(x) + self.level(level[:, None].to(x))[..., None, None])
        places = y.flatten(2).transpose(1, 2)
        read = F.scaled_dot_product_attention(self.q(places), self.k(context), self.v(context))
        return self.head(y + read.transpose(1, 2).reshape(y.shape))


class OfIds(nn.Module):
    """The same, of ids that it looks up by itself."""

    def __init__(self):
        super().__init__()
        self.table, self.net = nn.Embedding(8, 6), Attending()

    def forward(self, x, level, words):
        return self.net(x, level, self.table(words))


class Painter(nn.Module):
    """A text encoder and a denoiser; sampling is its own forward."""

    def __init__(self):
        super().__init__()
        self.text, self.unet = nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 6), nn.Tanh()), Attending()

    def forward(self, x, words):
        return sample(self.unet, x, self.text(words))


def sample(model, x, context, steps=3):
    for step in range(steps, 0, -1):
        x = 0.8 * x + 0.5 * model(x, torch.full((len(x),), step / steps), context)
    return x


def noisy(model, x, context):
    """Noise is drawn between the calls."""
    for step in (2.0, 1.0):
        x = 0.8 * x + 0.5 * model(x, torch.full((len(x),), step), context) + 0.1 * torch.randn(x.shape)
    return x


def guided(model, x, context):
    """Each call is of two prompts, and the picture follows their difference."""
    for step in (2.0, 1.0):
        both = model(
            torch.cat([x, x]), torch.full((2 * len(x),), step), torch.cat([torch.zeros_like(context), context])
        )
        without, along = both.chunk(2)
        x = x + 0.3 * (without + 2 * (along - without))
    return x


def made(kind, seed=0):
    torch.manual_seed(seed)
    return kind().eval()


def left(picture):
    return picture[..., :3].flatten(1).sum(1)


@pytest.mark.parametrize(
    ("model", "x", "loop", "denoiser"),
    [
        (Attending, (normal(1, 2, 6, 6), normal(1, 3, 6, seed=1)), sample, ""),
        (Attending, (normal(2, 2, 6, 6), normal(2, 3, 6, seed=1)), sample, ""),
        (Attending, (normal(1, 2, 6, 6), normal(1, 3, 6, seed=1)), guided, ""),
        (Attending, (normal(1, 2, 6, 6), normal(1, 3, 6, seed=1)), noisy, ""),
        (OfIds, (normal(1, 2, 6, 6), IDS), sample, ""),
        (Painter, (normal(1, 2, 6, 6), IDS), None, "unet"),
    ],
    ids=["embeddings", "batch", "guided", "noisy", "ids", "encoder"],
)
def test_call_by_call_is_the_whole_loop(model, x, loop, denoiser):
    model = made(model)

    def whole(model, *args):
        torch.manual_seed(0)
        return (loop or type(model).forward)(model, *args)

    expected = layerlens.relevance(model, x, target=left, forward=whole)
    found = layerlens.explain_sampling(model, x, loop=loop, target=left, denoiser=denoiser)
    assert torch.equal(found.score, expected.score)
    assert found.ledger.relative.max() < 1e-5
    torch.testing.assert_close(found.inputs["0"], expected.values["0"])
    words = expected.values["1"] if expected.values["1"].ndim == 2 else expected.values["1"].sum(-1)
    if denoiser:
        torch.testing.assert_close(found.inputs["1"], words)  # of the ids; by step at what the encoder returned
    else:
        own = found.words.float() if loop is not guided else found.words.float()[:, 3:]
        torch.testing.assert_close(own, words)
        outside = sum(one.amount for one in found.ledger.entries if one.kind != "input" and "of call" not in one.source)
        parts = found.words.sum(1) + found.constants.sum(1) + found.inputs["0"].double().flatten(1).sum(1) + outside
        torch.testing.assert_close(parts, found.score.double(), rtol=1e-4, atol=1e-5)


def test_prompts_of_one_call_have_their_own_words():
    found = Lens(made(Attending)).explain_sampling(
        (normal(1, 2, 6, 6), normal(1, 3, 6, seed=1)), loop=guided, words=["a", "red", "three"], level="level"
    )
    assert found.names[:4] == ("prompt 0: a", "prompt 0: red", "prompt 0: three", "prompt 1: a")
    assert found.levels == ("t=2", "t=1")
    assert found.by_step.shape == (1, 6, 2)


def test_maps_add_up_to_the_words_and_noise_stays_the_same():
    model, x = made(Attending), (normal(2, 2, 6, 6), normal(2, 3, 6, seed=1))
    found = layerlens.explain_sampling(model, x, loop=sample, maps=(2, 3), batch_size=4)
    torch.testing.assert_close(found.maps.mean((2, 3)), found.words, rtol=1e-4, atol=1e-7)
    assert found.which.shape == (2, 2, 3)
    one = tuple(part[:1] for part in x)
    drawn = layerlens.explain_sampling(model, one, loop=noisy, maps=2)
    torch.testing.assert_close(drawn.maps.mean((2, 3)), drawn.words, rtol=1e-4, atol=1e-7)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[:3, 3:] = True
    of_mask = layerlens.explain_sampling(model, one, loop=noisy, target=mask)
    of_box = layerlens.explain_sampling(model, one, loop=noisy, target=(0, 3, 3, 6))
    torch.testing.assert_close(of_mask.words, drawn.maps[:, :, 0, 1], rtol=1e-4, atol=1e-7)
    assert torch.equal(of_mask.words, of_box.words)
    generator = torch.Generator()

    def other_each_time(model, x, context):
        return sample(model, x, context) + torch.randn(x.shape, generator=generator)

    with pytest.raises(InputError, match="draws other numbers in each run"):
        layerlens.explain_sampling(model, one, loop=other_each_time, maps=2)


def test_layers_and_steps():
    found = layerlens.explain_sampling(
        made(OfIds), (normal(1, 2, 6, 6), IDS), loop=sample, layers=["net.q", "net.head"]
    )
    assert found.layer_names == ("net.q", "net.head")
    assert float(found.through[0].abs().sum()) == 0  # attention weights are constants under the rulebook "cp"
    assert found.moved[1].isnan().tolist() == [False, False, True]
    for of in ("words", "steps", "layers", "change"):
        assert found.matrix(of).columns == found.levels
    assert found.layers.values.sum(0).tolist() == pytest.approx([100] * 3)
    assert list(found.to_pandas().columns) == ["sample", "place", "word", "step", "relevance"]
    assert "no maps" not in found.explain()
    with pytest.raises(InputError, match="maps=8"):
        found.map_of("token 0")


def test_the_model_is_returned_as_it_was():
    model = made(OfIds).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()

    def broken(model, x, context):
        sample(model, x, context)
        raise KeyError("no such step")

    with pytest.raises(KeyError):
        layerlens.explain_sampling(model, (normal(1, 2, 6, 6), IDS), loop=broken)
    layerlens.explain_sampling(model, (normal(1, 2, 6, 6), IDS), loop=noisy)
    assert "forward" not in vars(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def in_place(model, x, context):
    y = model(x, torch.ones(len(x)), context)
    z = 0.5 * x + y
    model(z, torch.ones(len(x)), context)
    z += 1
    return model(z, torch.ones(len(x)), context) + model(0.9 * z, torch.ones(len(x)), context)


def writing(model, x, context):
    z = x * 1
    y = model(z, torch.ones(len(x)), context)
    z += y
    return z


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"loop": torch.no_grad()(sample)}, InputError, "without gradients"),
        ({"loop": writing}, InputError, "writes into what it gave the model"),
        ({"loop": lambda model, x, context: x}, InputError, "the loop does not call it"),
        ({}, OptionError, "needs the loop"),
        ({"loop": 3}, InputError, "a scheduler or a pipeline"),
        ({"loop": sample, "target": (0, 0, 9, 2)}, TargetError, "holds no place"),
        ({"loop": sample, "target": torch.ones(3, 3, dtype=torch.bool)}, TargetError, "does not fit the picture"),
        ({"loop": sample, "maps": 9}, OptionError, "at most 6 x 6"),
        ({"loop": sample, "words": ["a"] * 4}, OptionError, "4 names, and the prompt 3"),
        ({"loop": sample, "prompt": "text"}, OptionError, "prompt="),
        ({"loop": sample, "rules": "epsilon_plus_flat"}, layerlens.errors.RelevanceError, "first-layer rule"),
    ],
    ids=lambda part: str(part)[:20] if isinstance(part, str) else "",
)
def test_what_cannot_be_explained_is_said(options, error, text):
    with pytest.raises(error, match=text):
        layerlens.explain_sampling(made(Attending), (normal(1, 2, 6, 6), normal(1, 3, 6, seed=1)), **options)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.alive:
                    self.alive[key] = size
                    self.now += size
                    weakref.finalize(storage, self.freed, key)
        self.most = max(self.most, self.now)
        return result

    def freed(self, key):
        self.now -= self.alive.pop(key, 0)


def test_memory_is_that_of_one_step():
    model, x = made(lambda: Attending(width=64)), (normal(1, 2, 16, 16), normal(1, 3, 6, seed=1))
    most = {}
    for steps in (2, 12):
        with Peak() as peak:
            layerlens.explain_sampling(model, x, loop=lambda *args, n=steps: sample(*args, steps=n), layers=())
        most[steps] = peak.most
    assert most[12] < 1.3 * most[2]


UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4,
}  # fmt: skip
WITH_DIFFUSERS = {
    "UNet2DConditionModel": (UNET, "DDIMScheduler"),
    "DiTTransformer2DModel": (
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2, "sample_size": 8,
         "patch_size": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 8}, "DDPMScheduler",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_DIFFUSERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_models_and_schedulers_of_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    options, scheduler = WITH_DIFFUSERS[name]
    model = getattr(diffusers, name)(**options).eval()
    noise = normal(1, 4, 8, 8)
    x = (noise, normal(1, 3, 8)) if name.startswith("UNet") else {"sample": noise, "class_labels": torch.tensor([7])}
    found = Lens(model).explain_sampling(x, loop=getattr(diffusers, scheduler)(), steps=3, target=(0, 0, 8, 4))
    assert found.ledger.relative.max() < 1e-5
    assert found.levels == ("t=666", "t=333", "t=0")
    assert found.words.shape == (1, 3 if name.startswith("UNet") else 1)
    assert len(found.layer_names) > 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
             "HeunDiscreteScheduler", "PNDMScheduler", "LCMScheduler"]
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_kind_of_scheduler_replays_its_noise(name):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(**UNET).eval()
    x = normal(1, 4, 8, 8), normal(1, 3, 8)
    runs = [
        layerlens.explain_sampling(model, x, loop=getattr(diffusers, name)(), steps=4, maps=2) for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(runs[0].words, runs[1].words)
    assert runs[0].ledger.relative.max() < 1e-5
    torch.testing.assert_close(runs[0].maps.mean((2, 3)), runs[0].words, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_pipeline_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**UNET).eval()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1,
                                    vocab_size=20)
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae, text, None, unet, diffusers.DDIMScheduler(), None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    x = {
        "latents": normal(1, 4, 8, 8),
        "prompt_embeds": normal(1, 3, 8),
        "negative_prompt_embeds": normal(1, 3, 8, seed=1),
    }
    found = Lens(unet).explain_sampling(x, loop=pipeline, steps=3, words=["a", "red", "three"])
    assert found.ledger.relative.max() < 1e-5
    assert len(found.names) == 6
    torch.testing.assert_close(
        found.words.float(), torch.cat([found.inputs[f"{name}prompt_embeds"].sum(-1) for name in ("negative_", "")], 1)
    )


class Scaled(Attending):
    """A number comes before the noise level."""

    def forward(self, x, scale, timestep, context):
        return scale * super().forward(x, timestep, context)


class Unnamed(Scaled):
    """No argument says that it is the noise level."""

    def forward(self, x, scale, time, context):
        return super().forward(x, scale, time, context)


def test_noise_levels_are_named_and_never_guessed():
    def loop(model, x, context):
        for step in (4, 2, 2, 1):
            x = 0.8 * x + model(x, 0.5, torch.full((len(x),), step), context)
        return x

    def steps(model, **options):
        found = layerlens.explain_sampling(
            made(model), (normal(1, 2, 6, 6), normal(1, 3, 6, seed=1)), loop=loop, layers=(), **options
        )
        return found.levels, dict(found.summary())["noise level"]

    known = ("t=4", "t=2", "t=1")
    assert steps(Scaled) == (known, "timestep")
    unknown = "unknown, so calls are numbered; name it by an argument, level='scale' or 'time'"
    assert steps(Unnamed) == (("0", "1", "2", "3"), unknown)
    assert steps(Unnamed, level="time") == (known, "time")
    assert steps(Unnamed, level=2) == (known, "2")
    assert steps(Unnamed, level=lambda x, scale, time, context: time) == (known, "<lambda>")
    with pytest.raises(OptionError, match="level="):
        steps(Unnamed, level="timestep")
    with pytest.raises(InputError, match=r"level='context' is float32 \(1, 3, 6\), not one number.*scale, time"):
        steps(Unnamed, level="context")


class Twofold(Attending):
    """Two arguments may hold the words."""

    def forward(self, x, level, style, context):
        return super().forward(x, level, context) + style.mean()


def test_words_that_may_be_in_two_arguments_are_asked_for():
    def loop(model, x, style, context):
        return x + 0.5 * model(x, torch.ones(len(x)), style, context)

    x, style, context = normal(1, 2, 6, 6), normal(1, 2, 6, seed=1), normal(1, 3, 6, seed=2)
    lens = Lens(Twofold().eval())
    with pytest.raises(InputError, match="in 2 or 3: name the argument, such as prompt='2'"):
        lens.explain_sampling((x, style, context), loop=loop)
    for name, words in (("context", 3), ("2", 2)):
        assert lens.explain_sampling((x, style, context), loop=loop, prompt=name).words.shape == (1, words)
