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
# # Which saliency method?
#
# About forty methods say what in an input mattered, and their maps do not agree. Which one should you believe?
#
# This page compares methods with known answers: first on models whose right map is known by construction, then on a
# trained network and pictures in which the position of the digit is known, then on photographs, where nothing is known
# and only the model itself can answer. Each time, controls that never saw the model take part.

# %%
import torch

from layerlens import Lens, faithfulness, plotting, relevance
from layerlens.demo import efficientnet, embedded

# %% [markdown]
# ## Where the right values are known
#
# In an additive model each column of a table adds its own part to the score. In a sum of products the columns of each
# product share it equally: these are the Shapley values. The error is the largest deviation from the right value,
# relative to the largest right value; 0 is right, 1 is as bad as a map of zeros.

# %%
methods = ["gradient", "input_x_gradient", "integrated_gradients", "feature_ablation", "kernel_shap"]
tasks = [faithfulness.additive_model(batch=16), faithfulness.known_shapley(batch=16)]
errors = {name: [float(task.score(name)["error"].mean()) for task in tasks] for name in methods}
print(f"{'mean error':22} {tasks[0].name:>16} {tasks[1].name:>22}")
for name, (additive, shared) in errors.items():
    print(f"{name:22} {additive:16.3f} {shared:22.3f}")

# %% [markdown]
# A gradient is a slope, not a part of a score; times the input it would be right for a straight line, but these
# functions are curved. Leaving a column out is right where nothing interacts; with products it gives the whole product
# to each of the columns. Integrated gradients and KernelSHAP divide it and are right in both.
#
# ## Where the right place is known
#
# In two more tasks the value is unknown, but not the only place that can matter: an object that a hand-made network
# looks for, next to another one, and a mark in the corner, which is all that a small trained network could learn from.
# The number is the share of the map's positive values that lies on that place.

# %%
places = [faithfulness.masked_objects(batch=16), faithfulness.planted_watermark(batch=16)]
found = {
    "gradient": "gradient",
    "input_x_gradient": "input_x_gradient",
    "integrated_gradients": "integrated_gradients",
    "relevance": relevance,
}
mass = {name: [float(task.score(method)["relevance_mass"].mean()) for task in places] for name, method in found.items()}
area = [float(task.masks.double().mean()) for task in places]
print(f"{'share on the place':22} {places[0].name:>16} {places[1].name:>18}")
for name, (objects, mark) in {**mass, "of all pixels": area}.items():
    print(f"{name:22} {objects:16.2f} {mark:18.2f}")

# %%
mark = places[1]
watermark = Lens(mark.model, class_names=["square", "cross"])
plotting.compare_methods(
    [
        watermark.saliency(mark.x[:1], method="gradient", target=mark.target[:1]),
        watermark.saliency(mark.x[:1], method="integrated_gradients", target=mark.target[:1]),
        watermark.grad_cam(mark.x[:1], target=mark.target[:1]),
        watermark.relevance(mark.x[:1], target=mark.target[:1]),
    ],
    title="The class depends on the mark in the upper left corner, and on nothing else",
)

# %% [markdown]
# ## A trained network, and pictures with masks
#
# The small network that comes with layerlens recognizes the bright digit in a cluttered picture. Sixteen pictures come
# with masks of the digit's ink. Here are some maps for one of them:

# %%
images, labels, masks = embedded.sample_pictures()
digits = Lens(embedded.load_digit_net(), class_names=embedded.CLASS_NAMES)
chosen = {
    "relevance": relevance,
    "integrated_gradients": "integrated_gradients",
    "smooth_grad": "smooth_grad",
    "occlusion": "occlusion",
    "grad_cam": "grad_cam",
    "gradient": "gradient",
}
maps = {
    name: digits.relevance(images, target=labels)
    if name == "relevance"
    else digits.saliency(images, target=labels, method=name)
    for name in chosen
}
plotting.compare_methods(list(maps.values()), sample=7)

# %% [markdown]
# Which of them shows what the network does? Insert the pixels, the most important ones first: the probability of the
# digit should rise early. Delete them: it should fall early. Insertion minus deletion is one number per picture, and
# the mean comes with a 95 % interval. The gray rows are controls: a random order, the edges of the picture, and a spot
# in its middle.

# %%
board = digits.evaluate(images, maps, target=labels, masks=masks, steps=16)
board.plot()

# %%
best = board.best()
for name in (best, "gradient", "relevance", "sobel"):
    low, high = board.interval(name)
    print(f"{name:20} {board.mean(name):.3f} [{low:.3f}, {high:.3f}]")
change, low, high = board.difference(best, "relevance")
print(f"{best} less relevance, picture by picture: {change:+.3f} [{low:+.3f}, {high:+.3f}]")

# %% [markdown]
# All methods are far above their controls, and sixteen pictures are too few to separate them: an interval of the
# difference that contains 0 is a draw. On these easy pictures even a plain gradient works.
#
# Do the same maps lie on the digit? This is another question: a network may well use what is not ink, and a map that
# says so would be right and lose here.

# %%
board.plot(metric="relevance_mass")

# %% [markdown]
# ## Photographs
#
# For a large network and photographs there is no mask of what it uses. Only the model can answer. Three photographs
# are few, so the intervals are wide; `docs/faithfulness.md` has forty of them, and 33 methods.

# %%
net = Lens(efficientnet.load_efficientnet(), class_names=efficientnet.class_names())
photos = torch.cat([efficientnet.preprocess(photo) for photo in efficientnet.photographs().values()])
several = [
    net.saliency(photos, method="auto"),
    net.grad_cam(photos),
    net.saliency(photos, method="input_x_gradient"),
    net.saliency(photos, method="smooth_grad", samples=8),
]
print(f"auto took {several[0].method}: {several[0].settings['chosen']}")
plotting.compare_methods(several)

# %%
names = ["auto: relevance", "grad_cam", "input_x_gradient", "smooth_grad"]
judged = net.evaluate(photos, dict(zip(names, several, strict=True)), steps=8, fills=["blur"])
judged.plot()

# %% [markdown]
# On photographs SmoothGrad, the first on the digits, is last, and no better than a random order; gradient x input is
# hardly better. Relevance and Grad-CAM stay on top. But look at the gray rows: a spot in the middle, which never saw
# the model, does nearly as well, because a photographer puts the object there. Only paired differences over more
# photographs show what a method adds to that.
#
# So use `method="auto"`, which follows such measurements, and before you show a map of your own model, run
# `lens.evaluate` over some of your inputs and look at the controls.

# %%
for name in ("auto: relevance", "grad_cam"):
    for control in ("center", "smooth_grad"):
        change, low, high = judged.difference(name, control)
        print(f"{name:16} less {control:12} {change:+.3f} [{low:+.3f}, {high:+.3f}]")

# %% [markdown]
# The checks below hold for every run of this page.

# %%
assert max(errors["kernel_shap"] + errors["integrated_gradients"]) < 1e-3 < 0.5 < min(errors["gradient"])
assert errors["feature_ablation"][0] < 1e-6 and errors["feature_ablation"][1] > 1
assert mass["relevance"][1] > mass["integrated_gradients"][1] > mass["gradient"][1] > 2 * area[1]
assert all(board.difference(name, control)[1] > 0 for name in maps for control in board.controls)
assert board.mean("relevance", "relevance_mass") > 0.9 > board.mean("grad_cam", "relevance_mass")
assert judged.mean("auto: relevance") > 0.4 and abs(judged.mean("smooth_grad")) < 0.05
