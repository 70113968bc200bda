"""The command line: what it answers, and how it ends."""

import pytest
from PIL import Image, ImageDraw

from layerlens.__main__ import main


def embedded(*arguments):
    return main(["demo", "--model", "embedded", *map(str, arguments)])


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "größe 7 ñ.png"
    drawn = Image.new("RGB", (40, 30), (200, 200, 200))
    ImageDraw.Draw(drawn).line([(12, 4), (28, 4), (18, 26)], fill=(90, 20, 20), width=4)  # a seven
    drawn.save(path)
    return path


@pytest.mark.parametrize("extra, says", [
    (["--image", "nowhere.png"], "there is no file 'nowhere.png'"),
    (["--target", "sevn"], "no class is named 'sevn' among 10. Closest: seven"),
    (["--target", "12"], "12"),
    (["--target", "-11"], "-11"),
])  # fmt: skip
def test_wrong_use_is_one_line_and_code_2(tmp_path, capsys, extra, says):
    assert embedded("--out", tmp_path / "out", *extra) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("layerlens: error: ") and says in last
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_none(tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50])
    for name in ("text.png", "half.png", "."):
        assert embedded("--image", tmp_path / name, "--out", tmp_path / "out") == 2
        assert "picture" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_picture_is_replaced(tmp_path, capsys, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.png").symlink_to(picture)
    before = picture.read_bytes()
    for given, out in ((picture, "."), ("link.png", tmp_path), (tmp_path / "." / picture.name, f"../{tmp_path.name}")):
        assert embedded("--image", given, "--out", out) == 2
        assert "is in the folder of --out, where it could be replaced" in capsys.readouterr().err
    assert picture.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be(tmp_path, capsys, picture):
    assert embedded("--out", picture) == 2
    assert embedded("--out", picture / "deeper") == 2
    assert capsys.readouterr().err.count("is a file; give a folder") == 2


def test_unknown_words_end_with_code_2_and_the_usage(capsys):
    for words in (["demo", "--model", "alexnet"], ["show"], []):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert "usage: layerlens" in capsys.readouterr().err


def test_a_cancelled_run_leaves_nothing(tmp_path, monkeypatch, capsys, picture):
    def cancel(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("layerlens.demo.gallery.build", cancel)
    assert embedded("--out", tmp_path / "out") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr("layerlens.demo.gallery.render", cancel)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("stays")
    assert embedded("--image", picture, "--out", tmp_path / "out") == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_own_pictures_and_a_target(tmp_path, capsys, picture):
    out = tmp_path / "new" / "out"
    other = tmp_path / "größe_7_ñ.png"  # the same name once spaces are underscores
    Image.open(picture).convert("L").save(other)
    assert embedded("--image", picture, "--image", other, "--target", "seven", "--out", out) == 0
    shown = capsys.readouterr().out
    assert picture.name in shown and "ledger residual" in shown
    names = {path.name for path in out.iterdir()}
    assert {"größe_7_ñ_png_saliency.png", "größe_7_ñ_png_2_saliency.png", "index.html"} <= names
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "größe 7 ñ.png: seven" in text
