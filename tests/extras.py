"""Each extra alone is enough for what its page shows: `make test-extras`.

Run by a Python that has only what layerlens itself needs. Every extra gets an environment of its own on top of that,
with nothing else installed, and there the blocks of its page are run as they stand.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGES = {"demo": "skimage", "text": "transformers", "pandas": "pandas", "xarray": "xarray", "sklearn": "sklearn",
            "ray": "ray", "docs": "sphinx",
            "interactions": "shapiq", "trak": "dattri", "widget": "anywidget",
            "laplace": "laplace"}  # fmt: skip
"""Extra -> a module that comes with it and not with layerlens itself; jinja2, of `report`, comes with torch as well."""


def blocks(page: str, *holding: str) -> None:
    """Run the blocks of a page that hold one of these texts, one after the other."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    chosen = [block for block in found if any(text in block for text in holding)]
    assert len(chosen) >= len(holding), f"{page} has no block with {holding}"
    names: dict[str, object] = {"__name__": "page"}
    for code in chosen:
        exec(compile(code, page, "exec"), names)


def alone() -> None:
    """Import every module, run the README, and ask for what needs an extra: the error names it."""
    import torch

    import layerlens

    assert not [name for name in PACKAGES.values() if importlib.util.find_spec(name)], (
        "more than layerlens is installed"
    )
    for module in pkgutil.walk_packages(layerlens.__path__, "layerlens."):
        if not module.name.endswith(("__main__", "train_digits")):
            importlib.import_module(module.name)
    blocks("README.md", "load_digit_net")
    x = torch.rand(8, 4)
    lens = layerlens.Lens(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
    calls: dict[str, Callable[[], object]] = {
        "demo": importlib.import_module("layerlens.demo.efficientnet").load_efficientnet,
        "pandas": lambda: lens.capture(x).to_pandas(),
        "xarray": lambda: lens.capture(x).to_xarray(),
        "sklearn": lambda: lens.linear_probe(x, torch.arange(8) % 2),
        "interactions": lambda: lens.interactions(x[:1]),
        "trak": lambda: lens.influence(training=layerlens.Data(x, labels=[0] * 8), method="trak"),
        "widget": lambda: lens.explore(x[:1], targets=0).widget(),
        "laplace": lambda: lens.model_uncertainty(
            x, models="laplace", training=layerlens.Data(x, labels=[0, 1] * 4), method="gradient"
        ),
        "ray": lambda: lens.over(x, engine="ray", store="run").capture(),
    }
    for extra, call in calls.items():
        try:
            call()
        except layerlens.errors.MissingPackage as error:
            assert f"pip install 'layerlens-torch[{extra}]'" in str(error), error
        else:
            raise AssertionError(f"{extra} is not needed")


def text() -> None:
    """Run the block for texts with an untrained model in a folder instead of one of the hub."""
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=["<pad>"], show_progress=False)
    words.train_from_iterator(["The capital of France is Paris, that of Italy is Rome"] * 3, trainer)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=words.get_vocab_size(), **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(HUB)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(HUB)
    blocks("docs/first-picture.md", HUB)


def table() -> None:
    """Run the block for tables, and the one that makes a table of a record."""
    Path("patients.csv").write_text("patient,age,bmi,pressure\np1,0.2,0.5,-1.0\np2,-0.4,0.1,0.3\n")
    blocks("docs/first-picture.md", "patients.csv")
    blocks("docs/capture.md", "record.to_pandas()")


def command(*words: str) -> Callable[[], None]:
    """Run a command of Python."""
    return lambda: print(subprocess.run([sys.executable, *words], check=True))


def ray() -> None:
    """Run a small load with Ray, once in memory and once in a store."""
    import torch

    from layerlens import Lens
    from layerlens.demo.embedded import load_digit_net, sample_pictures

    lens = Lens(load_digit_net())
    pictures = sample_pictures()[0]
    spread = lens.over(pictures, store="run", engine="ray", batch_size=4, shard_size=8).capture("pool")
    own = lens.over(pictures, batch_size=4, shard_size=8).capture("pool")
    assert torch.equal(spread["pool"].tensor(), own["pool"].tensor())


def laplace() -> None:
    """Draw last layers of a small model."""
    import torch

    import layerlens

    x, net = torch.randn(40, 3), torch.nn.Linear(3, 2)
    training = layerlens.Data(x, labels=(x[:, 0] > 0).long().tolist())
    found = layerlens.model_uncertainty(net, x[:1], method="gradient", models="laplace", training=training)
    assert isinstance(found.deviation, torch.Tensor) and float(found.deviation.min()) > 0


ROWS: dict[str, Callable[[], None]] = {
    "alone": alone,
    "demo": command("-m", "layerlens", "demo", "--out", "gallery"),
    "text": text,
    "pandas": table,
    "xarray": lambda: blocks("docs/capture.md", "record.to_xarray()"),
    "sklearn": lambda: blocks(
        "docs/training-and-transfer.md", "import make_scenes, split_digits", "lens.linear_probe("
    ),
    "report": lambda: blocks("docs/report.md", "lens.report("),
    "interactions": lambda: blocks(
        "docs/saliency.md", "import CLASS_NAMES, load_digit_net", "class Together", ".interactions("
    ),
    "trak": lambda: blocks("docs/groups-and-errors.md", "from layerlens import Data", 'method="trak"'),
    "widget": lambda: blocks("docs/explorer.md", ".widget()"),
    "laplace": laplace,
    "ray": ray,
    "docs": command(str(ROOT / "docs/site/build.py"), "--out", "site/html"),
}
"""Extra -> what is run with it; `test` and `dev` are what the tests themselves need."""


def on_top(extra: str, folder: Path) -> str:
    """Make an environment that sees the packages of this one, install an extra there, and return its Python."""
    venv.create(folder, with_pip=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (own / "below.pth").write_text(sysconfig.get_path("purelib"))
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[{extra}]"], check=True)
    return python


def passes(extra: str) -> bool:
    """Run a row in an environment of its own, and in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = sys.executable if extra == "alone" else on_top(extra, Path(folder, "venv"))
            work = Path(folder, "work")
            work.mkdir()
            quiet = dict(os.environ, RAY_DISABLE_DOCKER_CPU_WARNING="1")
            subprocess.run([python, "-I", __file__, "--here", extra], cwd=work, env=quiet, check=True)
        except subprocess.CalledProcessError as error:
            print(f"{extra}: {error}")
            return False
    return True


def main() -> int:
    """Run all rows, or those that are named, and print which passed."""
    if sys.argv[1:2] == ["--here"]:
        with contextlib.redirect_stdout(sys.stderr):
            ROWS[sys.argv[2]]()
        return 0
    results = {extra: passes(extra) for extra in sys.argv[1:] or ROWS}
    for extra, passed in results.items():
        print(f"{extra:8} {'passed' if passed else 'failed'}")
    print(f"extras: {sum(results.values())} passed, {len(results) - sum(results.values())} failed")
    return int(not all(results.values()))


if __name__ == "__main__":
    sys.exit(main())
