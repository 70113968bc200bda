"""The page for users of captum names every class of captum, and only calls that exist."""

import pathlib
import re
from typing import get_args

import captum.attr
import captum.concept
import captum.influence
import captum.metrics
import captum.robust
from torch import nn

from layerlens import Lens
from layerlens.analyzers.influence.influence import By
from layerlens.analyzers.saliency.saliency import known_methods

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "from-captum.md").read_text()
BASES = {
    *("Attribution", "GradientAttribution", "PerturbationAttribution", "NeuronAttribution", "LayerAttribution"),
    *("InterpretableInput", "LLMAttributionResult", "RemoteLLMProvider", "Perturbation", "ConceptInterpreter"),
    *("Classifier", "DataInfluence", "TracInCPBase", "LimeBase", "VLLMProvider", "InterpretableEmbeddingBase"),
    *("StatValue", "TokenReferenceBase", "DefaultClassifier", "SummarizerSingleTensor"),
}
"""Classes that others derive from, or that hold a result."""


def test_every_class_of_captum_is_on_the_page():
    modules = (captum.attr, captum.robust, captum.concept, captum.influence, captum.metrics)
    public = {name for module in modules for name in module.__all__ if name[0].isupper()} - BASES
    layers = {name for name in public if name.startswith(("Layer", "Neuron"))}  # "any `Layer...` class"
    missing = {name for name in public - layers if not re.search(rf"\b{name}\b", PAGE)}
    assert missing == set()


def test_the_calls_on_the_page_exist():
    methods = set(re.findall(r'(?:method|of)="(\w+)"', PAGE))
    attacks = {"fgsm", "pgd"}
    assert methods - attacks - set(get_args(By)) - set(known_methods()) == set()
    lens = Lens(nn.Linear(2, 2))
    calls = set(re.findall(r"\blens\.(\w+)", PAGE))
    assert len(calls) > 10 and {name for name in calls if not hasattr(lens, name)} == set()
