"""The page that leads from a hub, a file or a table to the first picture: each block runs by itself.

No network: where a block loads trained weights from a hub, the same architecture gets random ones, or the weights of a
package; what is tested is the code.
"""

import pathlib
import re

import pytest
import torch
from PIL import Image

from tests.docs.test_pages import no_network, same  # noqa: F401 - a fixture

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "first-picture.md"
BLOCKS = re.findall(
    r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```\n\n(?:```text\n(.*?)```)?", PAGE.read_text(), re.S
)
NEEDS = {"timm": "timm", "torchvision": "torchvision", "skorch and scikit-learn": "skorch", "Lightning": "lightning"}
BUILD = "no build of torchvision fits this torch"


def test_every_block_of_the_page_is_run():
    assert len(BLOCKS) == PAGE.read_text().count("```python") == 8
    assert "from tests" not in PAGE.read_text()


def given(folder):
    """Write the files that a user has."""
    Image.new("RGB", (320, 240), (90, 60, 30)).save(folder / "cat.jpg")
    (folder / "patients.csv").write_text("patient,age,bmi,pressure\np1,0.2,0.5,-1.0\np2,-0.4,0.1,0.3\n")


@pytest.fixture
def random_weights(monkeypatch):
    """Build small models of the same kind where a block loads weights of a hub."""
    transformers = pytest.importorskip("transformers")
    small = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    monkeypatch.setattr(
        transformers.AutoModelForImageClassification,
        "from_pretrained",
        lambda name: transformers.ViTForImageClassification(small).eval(),
    )
    monkeypatch.setattr(
        transformers.AutoImageProcessor, "from_pretrained", lambda name: transformers.ViTImageProcessor()
    )


@pytest.mark.parametrize(("title", "code", "told"), [block for block in BLOCKS if "texts" not in block[0]])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_block_runs_and_draws(title, code, told, tmp_path, monkeypatch, capsys, request):
    if title in NEEDS:
        package = pytest.importorskip(NEEDS[title], reason=BUILD)
    if title == "timm":
        own = package.create_model
        monkeypatch.setattr(package, "create_model", lambda name, pretrained: own("convnext_atto"))
    if title == "torchvision":
        small = package.models.VisionTransformer(224, 32, 2, 2, 32, 64)
        torch.nn.init.normal_(small.heads.head.weight)  # it starts at 0
        monkeypatch.setattr(package.models, "vit_b_16", lambda weights: small.eval())
    if "pictures" in title:
        request.getfixturevalue("random_weights")
    monkeypatch.chdir(tmp_path)
    given(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})
    same(capsys.readouterr().out, told)
    for name in re.findall(r'save\("(.*?)"\)', code):
        assert Image.open(name).size[0] > 300


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_the_block_of_a_language_model_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((_, code, _),) = [block for block in BLOCKS if "texts" in block[0]]
    names = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), names)
    found = names["found"]
    assert "France" in found.texts[0][int(found.tensor[0].argmax())]
