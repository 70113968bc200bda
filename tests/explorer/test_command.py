"""`python -m layerlens explore`: the same page from the command line."""

import numpy as np

from layerlens.__main__ import main

MODELS = """
import torch
from torch import nn

def rows():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
"""


def test_it_writes_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "exploredmodels.py").write_text(MODELS)
    np.save("rows.npy", np.ones((2, 3)))
    words = ["explore", "--model", "exploredmodels:rows", "--input", "rows.npy", "--out", "page.html"]
    assert main([*words, "--target", "0", "1", "--title", "<mine>", "--method", "gradient", "--units", "4"]) == 0
    assert "page.html: 0." in capsys.readouterr().out
    text = (tmp_path / "page.html").read_text()
    assert "&lt;mine&gt;" in text and "rows.npy [1]" in text and "class 1" in text
    assert main([*words[:-1], "page.png"]) == 2
    assert "a page is written as .html" in capsys.readouterr().err
