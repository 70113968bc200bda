"""`python -m layerlens report`: what it reads, what it answers, and how it ends."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from layerlens.__main__ import create, import_object, main, parse_target
from layerlens.errors import InputError, OptionError
from layerlens.report.files import Preparation, read_inputs

MODELS = """
import torch
from torch import nn

torch.manual_seed(0)
ready = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
number = 3

def picture():
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 2))

def vector():
    return ready

def broken():
    raise RuntimeError("no weights here")

def total(output):
    return output.sum(dim=1)

class Words:
    def __call__(self, texts, return_tensors=None, padding=None, add_special_tokens=True):
        texts = [texts] if isinstance(texts, str) else texts
        return {"input_ids": torch.tensor([[len(word) for word in text.split()] for text in texts])}
    def convert_ids_to_tokens(self, ids):
        return [f"of {index} letters" for index in ids]

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 4), nn.Linear(4, 2)
    def forward(self, input_ids):
        return self.head(self.embed(input_ids).mean(dim=1))
"""
FAST = ("--method", "gradient", "--no-controls")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with models of a user and inputs of every kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "usermodels.py").write_text(MODELS)
    monkeypatch.delitem(__import__("sys").modules, "usermodels", raising=False)
    pixels = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    Image.fromarray(pixels).save("a.png")
    Image.fromarray(pixels[::-1]).save("b.jpg")
    np.save("rows.npy", np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]]))
    np.save("row.npy", np.array([1.0, 2.0, 3.0]))
    np.savez("rows.npz", x=np.ones((1, 3), dtype=np.float32))
    save_file({"x": torch.ones(1, 3)}, "rows.safetensors")
    (tmp_path / "a.txt").write_text("it is <b>good</b>\n")
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    return tmp_path


def run(*words):
    return main(["report", *words])


def test_pictures(folder, capsys):
    words = [
        "--model",
        "usermodels:picture",
        "--input",
        "a.png",
        "b.jpg",
        "--size",
        "32",
        "--mean",
        "0.5",
        "--std",
        "0.2",
    ]
    words += ["--class-names", "names.txt", "--target", "dog", "cat", "--title", "<mine>"]
    assert run(*words, *FAST) == 0
    assert "report.html: 2 sample(s); checks: " in capsys.readouterr().out
    text = (folder / "report.html").read_text()
    assert "&lt;mine&gt;" in text and "a.png" in text and "float32 (1, 3, 32, 32)" in text
    assert "python -m layerlens report --model usermodels:picture --input a.png b.jpg" in text
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize("words, holds", [
    (("--input", "rows.npy", "--target", "1"), ("rows.npy [0]", "rows.npy [1]", "class 1")),
    (("--input", "row.npy", "--single", "--target=-1"), ("row.npy", "class -1")),
    (("--input", "rows.npz"), ("rows.npz", "(predicted)")),
    (("--input", "rows.safetensors", "--target", "usermodels:total"), ("total",)),
])  # fmt: skip
def test_arrays(folder, words, holds):
    assert run("--model", "usermodels:ready", "--out", "page.html", *words, *FAST) == 0
    text = (folder / "page.html").read_text()
    assert all(part in text for part in holds)


def test_texts(folder):
    words = ["--model", "usermodels:Reader", "--tokenizer", "usermodels:Words", "--class-names", "names.txt"]
    assert run(*words, "--input", "a.txt", "--target", "cat", *FAST) == 0
    text = (folder / "report.html").read_text()
    assert "it is &lt;b&gt;good&lt;/b&gt;" in text and "of␣11␣letters" in text


@pytest.mark.parametrize("words, says", [
    (("--model", "nowhere:x", "--input", "row.npy"), "there is no module 'nowhere'"),
    (("--model", "usermodels", "--input", "row.npy"), "module:name"),
    (("--model", "usermodels:vectr", "--input", "row.npy"), "Closest: vector"),
    (("--model", "usermodels:number", "--input", "row.npy"), "is a int"),
    (("--model", "usermodels:broken", "--input", "row.npy"), "RuntimeError: no weights here"),
    (("--model", "usermodels:Words", "--input", "row.npy"), "returned a Words, not a Module"),
    (("--model", "usermodels:ready", "--input", "gone.png"), "there is no file 'gone.png'"),
    (("--model", "usermodels:ready", "--input", "gone.npy"), "'gone.npy' cannot be read as arrays"),
    (("--model", "usermodels:ready", "--input", "a.png", "row.npy"), "several kinds (arrays, pictures)"),
    (("--model", "usermodels:ready", "--input", "usermodels.py"), "suffix that is not known"),
    (("--model", "usermodels:ready", "--input", "a.txt"), "--tokenizer module:factory"),
    (("--model", "usermodels:ready", "--input", "a.png"), "the model does not take a.png"),
    (("--model", "usermodels:ready", "--input", "rows.npy", "--out", "no/page.html"), "the folder no does not exist"),
    (("--model", "usermodels:ready", "--input", "rows.npy", "--out", "rows.npy"), "written as .html, not as .npy"),
    (("--model", "usermodels:ready", "--input", "a.png", "--out", "r.pdf"), "Give 'r.html'; a browser prints it"),
    (("--model", "usermodels:ready", "--input", "rows.npy", "--class-names", "names", "--out", "./names"),
     "--out names is an input, which it would replace"),
    (("--model", "usermodels:ready", "--input", "rows.npy", "--class-names", "gone.txt"), "gone.txt"),
    (("--model", "usermodels:ready", "--input", "rows.npy", "--target", "7"), "class 7 is out of range"),
    (("--model", "usermodels:ready", "--input", "rows.npy", "--method", "gradiant"), "Closest: gradient"),
    (("--model", "usermodels:ready", "--input", "rows.npy", "--layers", "9"), "no layer '9'"),
    (("--model", "usermodels:ready", "--input", "a.png", "--mean", "0", "0"), "mean has 2 numbers for 3 channel(s)"),
    (("--model", "usermodels:ready", "--input", "a.png", "--size", "1", "2", "3"), "got 3 numbers"),
])  # fmt: skip
def test_wrong_use_is_one_line_and_code_2(folder, capsys, words, says):
    before = sorted(folder.iterdir())
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("layerlens: error: ") and says in line
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


def test_a_canceled_run_says_so_and_leaves_nothing(folder, capsys, monkeypatch):
    def cancel(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("layerlens.report.assemble.examine", cancel)
    assert run("--model", "usermodels:ready", "--input", "rows.npy") == 130
    assert "canceled; nothing was written" in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_pickles_are_not_read(folder):
    np.save("objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read as arrays"):
        read_inputs([folder / "objects.npy"], Preparation(), None)


def test_the_preparation_of_a_picture():
    picture = Image.new("RGB", (4, 2), (255, 0, 51))
    ready = Preparation(mean=(0.5, 0.5, 0.5), std=(0.5, 1.0, 0.1))(picture)
    assert ready.shape == (1, 3, 2, 4)
    torch.testing.assert_close(ready[0, :, 0, 0], torch.tensor([1.0, -0.5, -3.0]))
    assert Preparation(size=(3, 5), channels=1)(picture).shape == (1, 1, 3, 5)
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert Preparation(channels=1)(clear).tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]
    with pytest.raises(OptionError, match="above 0"):
        Preparation(std=(0.0,)).check()


def test_targets_and_objects(folder):
    assert (
        json.dumps([parse_target("3", None, True), parse_target("3", ["3"], True), parse_target("3", ["cat"], True)])
        == '["3", "3", 3]'
    )
    assert parse_target("usermodels:total", None, False).__name__ == "total"
    assert import_object("torch:nn.Linear", "the model") is torch.nn.Linear
    with pytest.raises(InputError, match=r"has no 'nn.Liner'\. Closest: Linear"):
        import_object("torch:nn.Liner", "the model")
    assert create("usermodels:ready", "the model", torch.nn.Module) is import_object("usermodels:ready", "the model")
