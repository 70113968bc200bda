"""Names of methods and options as the words of a title: `grad_cam` is "Grad-CAM"."""

from __future__ import annotations

import re
from typing import Final

KNOWN: Final = {
    "ablation_cam": "Ablation-CAM",
    "attn": "AttnLRP",
    "blur_ig": "Blur IG",
    "cam": "CAM",
    "centered_relevance": "Centered relevance",
    "cka": "CKA",
    "cp": "CP-LRP",
    "deconvnet": "DeconvNet",
    "deep_lift": "DeepLIFT",
    "deep_shap": "DeepSHAP",
    "eigen_cam": "Eigen-CAM",
    "eigen_grad_cam": "EigenGrad-CAM",
    "finer_cam": "Finer-CAM",
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "gradient": "Gradient",
    "gradient_shap": "GradientSHAP",
    "guided_backprop": "Guided backpropagation",
    "guided_grad_cam": "Guided Grad-CAM",
    "guided_ig": "Guided IG",
    "hi_res_cam": "HiResCAM",
    "input_x_gradient": "Input x gradient",
    "kernel_shap": "KernelSHAP",
    "layer_cam": "LayerCAM",
    "leave_one_out": "Leave-one-out",
    "lime": "LIME",
    "lrp": "LRP",
    "occlusion": "Occlusion",
    "permutation": "Permutation",
    "rise": "RISE",
    "road": "ROAD",
    "score_cam": "Score-CAM",
    "shap": "SHAP",
    "smooth_grad": "SmoothGrad",
    "smooth_grad_squared": "SmoothGrad squared",
    "sobol": "Sobol",
    "var_grad": "VarGrad",
    "x_grad_cam": "XGrad-CAM",
    "xrai": "XRAI",
}
"""Name in the code -> the spelling of the field."""

_RULES: Final = re.compile(r"^((?:\w+ )*relevance), (\w+)")
_IDENTIFIER: Final = re.compile(r"(?<![\w.])[a-z][a-z0-9]*(?:_[a-z0-9]+)+(?![\w.])")
_PLAIN_START: Final = re.compile(r"[a-z]{2,}(?=$|[ ,;:(-])")


def words(name: str) -> str:
    """Return the name of a method, option or quantity as words that begin a title; paths of layers stay as they are.

    Args:
        name: a name, or several joined by `at`, a comma, `+` or `-`.

    Example:
        >>> words("integrated_gradients"), words("grad_cam at blocks.2"), words("relevance, epsilon_plus")
        ('Integrated gradients', 'Grad-CAM at blocks.2', 'Relevance (epsilon-plus)')
    """
    parts = re.split(r"( [-+] )", name)
    if len(parts) > 1 and not all(part in KNOWN or "_" in part or _RULES.match(part) for part in parts[::2]):
        return name  # a difference of something else than methods, such as groups of samples
    return "".join(part if place % 2 else _words(part) for place, part in enumerate(parts))


def _words(name: str) -> str:
    if name in KNOWN:
        return KNOWN[name]
    if (mean := name.find(", mean of ")) >= 0:
        return f"{_words(name[:mean])}{name[mean:]}"
    name, at, layer = name.partition(" at ")
    name = _RULES.sub(lambda found: f"{found[1]} ({_hyphenated(found[2])})", KNOWN.get(name, name))
    name = re.sub(r"\((\w+)\)", lambda found: f"({_hyphenated(found[1])})", name)
    name = _IDENTIFIER.sub(lambda found: KNOWN.get(found[0], found[0].replace("_", " ")), name)
    if _PLAIN_START.match(name):
        name = name[0].upper() + name[1:]
    return f"{name}{at}{layer}"


def _hyphenated(rules: str) -> str:
    return KNOWN.get(rules, rules.replace("_", "-"))
