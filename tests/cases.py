"""Models as rows: the same small zoo for every test that claims to hold for any model.

`CASES[name].build()` gives the model in eval mode, seeded, with statistics and biases that are not trivial;
`.example()` gives an input of two samples and `.target` what to score. A model kind to test on is one more row.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import re
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest
import torch
from torch import nn

Kind = Literal["feedforward", "convolution", "recurrent", "transformer", "generative", "hybrid", "dynamic"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One model with its input and target.

    Attributes:
        name: key in `CASES`.
        build: makes the model: eval mode, always the same weights.
        example: makes an input with a batch of two, always the same.
        target: a spec for `layerlens.as_target`, good for both samples.
        kind: family of the model.
        slow: whether a test of every row leaves it to the slow tests: it is large, and others of its kind are quick.
        unrun: layers that do not run on the example, by design; containers without a forward are not listed.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    target: Any
    kind: Kind
    slow: bool = False
    unrun: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(
    name: str, kind: Kind, example: Callable[[], Any], target: Any, *, slow: bool = False, unrun: tuple[str, ...] = ()
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Make a row of a function that builds a model: seeded, perturbed, in eval mode, leaving the generators alone."""

    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        @functools.wraps(make)
        def build() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)  # torch.manual_seed takes 3 ms where there is no GPU
                return perturb(make(), seed=1).eval()

        CASES[name] = Case(name, build, example, target, kind, slow, unrun)
        return build

    return add


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make trivial numbers non-trivial, in place: running statistics, and every parameter that is constant.

    Norms start as the identity, biases at zero, layer scales at 1e-6 and class tokens at zero; a test on such a model
    passes for wrong reasons.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                if "layer_scale" in name:
                    parameter.fill_(0.5)
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.copy_(0.3 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.5 + 1.5 * torch.rand(module.running_var.shape, generator=generator))
    return model


ADDITIVE = re.compile(
    r"(^|[._])(bias|cls_token|class_embedding|mask_token|position_embeddings?|embed_positions|token_type_embeddings?"
    r"|wpe|time_emb_proj)([._]|$)"
)


def zero_additive(model: nn.Module) -> nn.Module:
    """A copy of the model whose additive constants are zero: biases, running means, position and class embeddings.

    What is left is linear wherever it is piecewise linear, so that relevance must sum to the score.
    """
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if ADDITIVE.search(name):
                parameter.zero_()
        for name, buffer in twin.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
    return twin


def normal(*shape: int, seed: int = 7) -> torch.Tensor:
    """Normal numbers, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def double(x: Any) -> Any:
    """An example input with its floating-point tensors in float64."""
    if isinstance(x, dict):
        return {name: double(part) for name, part in x.items()}
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def tokens(batch: int, length: int, count: int, seed: int = 7) -> torch.Tensor:
    """Token ids, always the same; 0 is left for padding."""
    return torch.randint(1, count, (batch, length), generator=torch.Generator().manual_seed(seed))


# -- feedforward and convolution -------------------------------------------------------------------------------------


@case("mlp", "feedforward", lambda: normal(2, 6), [1, 0])
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


class ResidualNet(nn.Module):
    """One in-place ReLU object used three times, BatchNorm after every convolution, a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8 * 2 * 2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        x = self.pool(self.relu(self.conv3(x)))
        return self.fc(x.flatten(1))


@case("cnn", "convolution", lambda: normal(2, 3, 8, 8), 2)
def cnn() -> nn.Module:
    return ResidualNet()


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.act, self.gate = nn.SiLU(), nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


@case("depthwise", "convolution", lambda: 3 * normal(2, 3, 8, 8), None)
def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
        SqueezeExcite(8),
        nn.Sequential(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU6()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


# -- recurrent -------------------------------------------------------------------------------------------------------


class LastStep(nn.Module):
    """A recurrent layer and a classifier of its last step."""

    def __init__(self, rnn: nn.RNNBase, classes: int = 3) -> None:
        super().__init__()
        self.rnn, self.fc = rnn, nn.Linear(rnn.hidden_size, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


@case("lstm", "recurrent", lambda: normal(2, 5, 4), [2, 0])
def lstm() -> nn.Module:
    return LastStep(nn.LSTM(4, 6, num_layers=2, batch_first=True))


@case("gru", "recurrent", lambda: normal(2, 5, 4), 1)
def gru() -> nn.Module:
    return LastStep(nn.GRU(4, 6, batch_first=True))


# -- transformers ----------------------------------------------------------------------------------------------------


class EncoderClassifier(nn.Module):
    """Token ids -> embedding and positions -> nn.TransformerEncoder -> mean -> classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position_embeddings = nn.Embedding(20, 8), nn.Parameter(torch.randn(1, 6, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.fc(self.encoder(self.embedding(ids) + self.position_embeddings[:, : ids.shape[1]]).mean(dim=1))


@case(
    "encoder",
    "transformer",
    lambda: {"ids": tokens(2, 6, 20)},
    1,
    unrun=tuple(f"encoder.layers.{k}.self_attn.out_proj" for k in range(2)),  # torch reads its weight, never calls it
)
def encoder() -> nn.Module:
    return EncoderClassifier()


def _padded(vocabulary: int) -> dict[str, torch.Tensor]:
    ids, mask = tokens(2, 6, vocabulary), torch.ones(2, 6, dtype=torch.long)
    ids[1, 4:], mask[1, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def _unpadded(vocabulary: int) -> dict[str, torch.Tensor]:
    return {"input_ids": tokens(2, 6, vocabulary), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
SHALLOW = WIDTHS | {"num_hidden_layers": 1}


def _twice(path: str) -> tuple[str, ...]:
    return tuple(path.format(k) for k in range(2))


STAGES = _twice("resnet.encoder.stages.{}.layers")  # an nn.Sequential that the stage walks by itself


@case("hf_resnet", "convolution", lambda: {"pixel_values": normal(2, 3, 32, 32)}, [0, 2], unrun=STAGES, slow=True)
def hf_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "bottleneck"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))


@case("hf_vit", "transformer", lambda: {"pixel_values": normal(2, 3, 16, 16)}, 1)
def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(**WIDTHS, image_size=16, patch_size=4, num_labels=3, initializer_range=0.2)
    )


@case("hf_convnext", "convolution", lambda: {"pixel_values": normal(2, 3, 32, 32)}, None, slow=True)
def hf_convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
    return ConvNextForImageClassification(ConvNextConfig(**sizes, num_labels=3, initializer_range=0.2))


# Dropout inside fused attention is never called as a layer.
@case("hf_bert", "transformer", lambda: _padded(40), 1, unrun=_twice("bert.encoder.layer.{}.attention.self.dropout"))
def hf_bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(**WIDTHS, vocab_size=40, max_position_embeddings=12, num_labels=3, initializer_range=0.2)
    )


@case("hf_gpt2", "transformer", lambda: _unpadded(40), (-1, 5), unrun=_twice("transformer.h.{}.attn.attn_dropout"))
def hf_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12, "vocab_size": 40}
    special = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **special, use_cache=False, initializer_range=0.2))


@case("hf_llama", "transformer", lambda: _unpadded(40), (-1, 7))
def hf_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 12}
    return LlamaForCausalLM(LlamaConfig(**WIDTHS, **sizes, use_cache=False, initializer_range=0.2))


# -- generative ------------------------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """A variational autoencoder; it samples in eval mode as well, as the published ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
        self.mu, self.logvar = nn.Linear(4 * 4 * 4, 3), nn.Linear(4 * 4 * 4, 3)
        self.decode = nn.Sequential(
            nn.Linear(3, 4 * 4 * 4),
            nn.ReLU(),
            nn.Unflatten(1, (4, 4, 4)),
            nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.encode(x)
        mu, logvar = self.mu(hidden), self.logvar(hidden)
        latent = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return {"reconstruction": self.decode(latent), "mu": mu, "logvar": logvar}


def mean_reconstruction(output: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean of the picture, (batch,)."""
    return output["reconstruction"].mean(dim=(1, 2, 3))


@case("vae", "generative", lambda: normal(2, 1, 8, 8), mean_reconstruction)
def vae() -> nn.Module:
    return Autoencoder()


def middle_of_picture(output: torch.Tensor) -> torch.Tensor:
    """The mean of the middle of the picture, (batch,)."""
    return output[:, :, 4:12, 4:12].mean(dim=(1, 2, 3))


@case("gan", "generative", lambda: normal(2, 5, 1, 1), middle_of_picture)
def gan() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(5, 12, 4, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(True),
        nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2, inplace=True),
        nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1),
        nn.Tanh(),
    )


# -- inputs of several kinds -------------------------------------------------------------------------------------------


def _picture_and_words() -> dict[str, torch.Tensor]:
    ids = tokens(2, 8, 39)
    ids[:, 1:5] = 39  # what a token of the picture takes the place of
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": normal(2, 3, 16, 16)}


@case("hf_llava", "generative", _picture_and_words, (-1, 7), slow=True)
def hf_llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sees = CLIPVisionConfig(**SHALLOW, image_size=16, patch_size=8)
    reads = LlamaConfig(**SHALLOW, num_key_value_heads=2, vocab_size=40, use_cache=False, initializer_range=0.2)
    both = LlavaConfig(vision_config=sees, text_config=reads, image_token_index=39, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(both)


def _sound_and_words() -> dict[str, torch.Tensor]:
    return {"input_features": normal(2, 8, 24), "decoder_input_ids": tokens(2, 4, 40)}


@case("hf_whisper", "generative", _sound_and_words, (-1, 7), slow=True)
def hf_whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 8, "vocab_size": 40, "d_model": 16}
    sizes |= {"max_source_positions": 12, "max_target_positions": 8}
    special = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    return WhisperForConditionalGeneration(WhisperConfig(**sizes, **special, use_cache=False, init_std=0.2))


def match_of_pairs(output: Any) -> torch.Tensor:
    """How well each picture goes with its own caption, (batch,), out of a matrix of all pairs."""
    return output.logits_per_image.diagonal()


def _picture_and_caption() -> dict[str, torch.Tensor]:
    ids = tokens(2, 5, 39)
    ids[:, -1] = 39  # the end of the text, where CLIP reads it
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": normal(2, 3, 16, 16)}


@case("hf_clip", "generative", _picture_and_caption, match_of_pairs, slow=True)
def hf_clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    reads = {**SHALLOW, "vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 39}
    sees = {**SHALLOW, "image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=reads, vision_config=sees, projection_dim=8))


def _noise_step_and_prompt() -> dict[str, Any]:
    return {"sample": normal(2, 4, 8, 8), "timestep": 300, "encoder_hidden_states": normal(2, 3, 8, seed=8)}


def corner_of_noise(output: Any) -> torch.Tensor:
    """The mean of the noise that is found in a corner, (batch,)."""
    return output.sample[:, :, :4, :4].mean(dim=(1, 2, 3))


if importlib.util.find_spec("diffusers"):

    @case("denoiser", "generative", _noise_step_and_prompt, corner_of_noise)
    def denoiser() -> nn.Module:
        from diffusers import UNet2DConditionModel

        kinds = {
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            "mid_block_type": None,
        }
        sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4}
        attention = {"cross_attention_dim": 8, "attention_head_dim": 4}
        return cast(nn.Module, UNet2DConditionModel(**sizes, **kinds, **attention, block_out_channels=(8,)))


# -- hybrid and dynamic ----------------------------------------------------------------------------------------------


class FramesThenTime(nn.Module):
    """The same CNN on every frame (one call per frame), an LSTM over the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 6)
        )
        self.lstm, self.fc = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        frames = torch.stack([self.frame(frame) for frame in video.unbind(1)], dim=1)
        return self.fc(self.lstm(frames)[0][:, -1])


@case("video", "hybrid", lambda: normal(2, 3, 1, 6, 6), [0, 2])
def video() -> nn.Module:
    return FramesThenTime()


class EarlyExit(nn.Module):
    """As many blocks as the samples need; a sample that is sure stays as it is while the others go on."""

    def __init__(self, depth: int = 5, sure: float = 0.45) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(depth))
        self.fc, self.sure = nn.Linear(8, 3), sure

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(x)
        for block in self.blocks:
            done = self.fc(hidden).softmax(dim=1).max(dim=1, keepdim=True).values > self.sure
            if bool(done.all()):
                break
            hidden = torch.where(done, hidden, hidden + block(hidden))
        return self.fc(hidden)


@case("early_exit", "dynamic", lambda: normal(2, 4), 0, unrun=("blocks.4", "blocks.4.0", "blocks.4.1"))
def early_exit() -> nn.Module:
    return EarlyExit()


class TwoInputs(nn.Module):
    """A picture and a table row, joined; the row is optional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)
        self.row = nn.Sequential(nn.Linear(5, 6), nn.GELU())
        self.fc = nn.Bilinear(4, 6, 3)

    def forward(self, image: torch.Tensor, table: torch.Tensor | None = None, scale: float = 1.0) -> torch.Tensor:
        seen = torch.relu(self.norm(self.conv(image))).mean(dim=(2, 3))
        table = torch.zeros(len(image), 5) if table is None else table
        return self.fc(seen, self.row(table * scale))


@case("two_inputs", "hybrid", lambda: {"image": normal(2, 1, 6, 6), "table": normal(2, 5, seed=8), "scale": 0.5}, 2)
def two_inputs() -> nn.Module:
    return TwoInputs()


class Split(nn.Module):
    """Returns a tuple with None and a dict, so that nothing that reads outputs may think of them as one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None, dict[str, Any]]:
        return self.low(x), None, {"high": [self.high(x)], "count": len(x)}


class Nested(nn.Module):
    """A model whose layers and whose own output are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.fc = Split(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[None, dict[str, Any], tuple[torch.Tensor, ...]]:
        low, _, rest = self.split(x)
        high = rest["high"][0]
        return None, {"logits": self.fc(torch.relu(low) + high), "nothing": None}, (low, high)


def nested_logit(output: tuple[Any, ...]) -> torch.Tensor:
    """The logit of class 1, (batch,)."""
    return output[1]["logits"][:, 1]


@case("nested", "feedforward", lambda: normal(2, 6), nested_logit)
def nested() -> nn.Module:
    return Nested()


case_names = [pytest.param(name, marks=pytest.mark.slow) if row.slow else name for name, row in CASES.items()]
"""The names of all rows, for `parametrize`."""
