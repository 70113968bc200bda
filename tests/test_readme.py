"""The README's lines run as they stand."""

import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_first_lines_run(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert (tmp_path / "seven.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "blocks.0.conv1" in shown and "relative residual" in shown
    assert float(names["relevance"].ledger.relative.max()) < 1e-5


def test_every_file_that_is_named_exists():
    text = README.read_text()
    named = re.findall(r"\]\(((?:docs|notebooks)/[^)]+)\)", text) + re.findall(
        r"`((?:layerlens|notebooks|tests)/[^`]+)`", text
    )
    assert len(named) >= 5
    for path in named:
        assert (README.parent / path).exists(), path
