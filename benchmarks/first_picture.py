"""Statements and seconds from a trained model to a first picture: `python -m benchmarks.first_picture [name ...]`.

A name is that of a task or a package. Each snippet runs in an interpreter of its own, with the packages that are there;
it starts with a model and an input and ends with a file. Statements are counted in its syntax tree, imports apart; a
package that is not there is left out.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

GIVEN = {
    "picture": """
from PIL import Image
from layerlens.demo.embedded import CLASS_NAMES, load_digit_net, sample_pictures
net, names, picture = load_digit_net().eval(), CLASS_NAMES, sample_pictures()[0][7]
""",
    "table": """
import torch, pandas
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).eval()
rows = pandas.DataFrame(torch.randn(40, 4).numpy(), columns=["age", "bmi", "pressure", "sugar"])
""",
    "text": """
from tests.real_models import smollm2
(net, tokenizer), text = smollm2(), "The capital of France is"
""",
}
"""Task -> what a user has; neither counted nor timed."""

SNIPPETS = {
    ("picture", "layerlens"): """
from layerlens import Lens
Lens(net, class_names=names).saliency(picture[None]).plot().save("out.png")
""",
    ("picture", "captum"): """
from captum.attr import IntegratedGradients, visualization
x = picture[None]
target = int(net(x).argmax())
found = IntegratedGradients(net).attribute(x, target=target)
show = lambda tensor: tensor[0].detach().permute(1, 2, 0).numpy()
figure, _ = visualization.visualize_image_attr(show(found), show(x), "blended_heat_map", "all", show_colorbar=True,
                                               title=names[target], use_pyplot=False)
figure.savefig("out.png")
""",
    ("picture", "pytorch_grad_cam"): """
import numpy
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
x = picture[None]
with GradCAM(model=net, target_layers=[net.blocks]) as cam:
    found = cam(input_tensor=x, targets=None)
gray = numpy.repeat(picture.permute(1, 2, 0).numpy(), 3, axis=2)
Image.fromarray(show_cam_on_image(gray, found[0], use_rgb=True)).save("out.png")
""",
    ("picture", "shap"): """
import matplotlib.pyplot as pyplot, numpy, shap
x = picture[None]
target = int(net(x).argmax())
found = shap.GradientExplainer(net, sample_pictures()[0]).shap_values(x)
swap = lambda array: numpy.moveaxis(numpy.asarray(array), 1, -1)
shap.image_plot(swap(found[..., target]), swap(x), show=False)
pyplot.savefig("out.png")
""",
    ("table", "layerlens"): """
from layerlens import Lens
Lens(net).saliency(rows[:1]).plot().save("out.png")
""",
    ("table", "captum"): """
import matplotlib.pyplot as pyplot
from captum.attr import ShapleyValueSampling
x = torch.tensor(rows[:1].to_numpy())
found = ShapleyValueSampling(net).attribute(x, target=0)
pyplot.barh(rows.columns, found[0].detach().numpy())
pyplot.savefig("out.png")
""",
    ("table", "shap"): """
import matplotlib.pyplot as pyplot, shap
predict = lambda values: net(torch.as_tensor(values).float())[:, 0].detach().numpy()
names = list(rows.columns)
found = shap.Explainer(predict, rows.to_numpy(), feature_names=names)(rows[:1].to_numpy())
shap.plots.bar(found[0], show=False)
pyplot.savefig("out.png")
""",
    ("text", "layerlens"): """
from layerlens import Lens
Lens(net, tokenizer=tokenizer).saliency(text).plot().save("out.png")
""",
    ("text", "captum"): """
from captum.attr import LayerIntegratedGradients, LLMGradientAttribution, TextTokenInput
method = LayerIntegratedGradients(net, net.model.embed_tokens)
found = LLMGradientAttribution(method, tokenizer).attribute(TextTokenInput(text, tokenizer), target=" Paris")
figure, _ = found.plot_token_attr(show=False)
figure.savefig("out.png")
""",
    ("text", "inseq"): """
import inseq
model = inseq.load_model(net, "integrated_gradients", tokenizer=tokenizer)
found = model.attribute(text, generation_args={"max_new_tokens": 1})
open("out.html", "w").write(found.show(return_html=True, display=False))
""",
}
"""Task, package -> the rest of the way to a file."""


HERE = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
"""The environment, with the package and its tests."""


def statements(code: str) -> tuple[int, int]:
    """Return the number of statements, and of imports."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.stmt)]
    imports = sum(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes)
    return len(nodes) - imports, imports


def seconds(given: str, code: str, folder: str) -> float:
    """Return the processor time of the code in a fresh interpreter, imports included, in seconds; best of three."""
    timed = f"import time\n{given}\nstart = time.process_time()\n{code}\nprint('took', time.process_time() - start)"
    best = float("inf")
    for _ in range(3):
        command = [sys.executable, "-W", "ignore", "-c", timed]
        done = subprocess.run(command, cwd=folder, env=HERE, check=True, capture_output=True, text=True)
        best = min(best, float(done.stdout.rpartition("took ")[2]))
    return best


def main(names: list[str]) -> None:
    """Print the table."""
    print("| task | package | statements | imports | seconds |\n| --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for task, given in GIVEN.items():
            for (own, package), code in SNIPPETS.items():
                wanted = not names or task in names or package in names
                if own != task or not wanted or not importlib.util.find_spec(package):
                    continue
                count, imports = statements(code)
                spent = seconds(given, code, folder)
                print(f"| {task} | {package} | {count} | {imports} | {spent:.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
