"""One result of every type, and variants of them."""

import dataclasses

import torch

from layerlens.results import (
    ActivationMaps,
    AdversarialExamples,
    AnswerAttribution,
    AttentionWeights,
    Attribution,
    AttributionGraph,
    Contributions,
    Curve,
    EnsembleAttribution,
    Entry,
    ErrorExplanation,
    FaithfulnessCurve,
    FeatureVisualization,
    Finding,
    GradientCheck,
    GroupComparison,
    GroupEffects,
    Influence,
    LatentTraversal,
    LayerGradient,
    LayerHealth,
    LayerProfile,
    LayerRow,
    LayerTable,
    Leaderboard,
    Ledger,
    LogitLens,
    Matrix,
    ModelChecks,
    Ranking,
    ReceptiveField,
    RecurrentStates,
    Relevance,
    RouteComparison,
    Routes,
    TopInputs,
    TrainingHistory,
    UnitStatistics,
)
from tests.cases import normal
from tests.plotting.helpers import generation, sampled, steering

SETTINGS = {"steps": 8, "baseline": "zero", "noise": 0.5, "exact": True, "seed": None}
SETTINGS |= {"sizes": (1, (2, 3)), "by": {3: "x"}}


def attribution(**changes):
    fields = {
        "values": normal(2, 3, 4, 4),
        "axes": ("batch", "channel", "height", "width"),
        "signed": True,
        "units": "score",
        "target": "class 1",
        "method": "gradient x input",
        "settings": SETTINGS,
        "score": torch.tensor([1.5, -2.25]),
        "checks": {"completeness gap": torch.tensor([0.0, 1e-7])},
        "inputs": normal(2, 3, 4, 4, seed=1),
    }
    return Attribution(**{**fields, **changes})


def ledger():
    return Ledger(
        torch.tensor([3.0, -1.0]),
        (
            Entry("input", "", "x", torch.tensor([2.0, 1.0])),
            Entry("additive", "fc", "bias", torch.tensor([0.5, -2.0])),
            Entry("absorbed", "act", "offset", torch.tensor([0.25, 0.0])),
            Entry("additive", "fc", "shift", torch.tensor([0.25, 0.0])),
        ),
    )


def profile(**changes):
    fields = {
        "quantity": "Jacobian norm",
        "layers": ("conv", "relu", "relu #1"),
        "values": torch.tensor([1.0, 3.0, 2.0]),
        "units": "score per unit",
        "signed": False,
        "method": "reverse mode",
        "settings": {},
        "error": torch.tensor([0.1, 0.2, 0.3]),
    }
    return LayerProfile(**{**fields, **changes})


def relevance():
    names = (field.name for field in dataclasses.fields(Attribution))
    base = {name: getattr(attribution(), name) for name in names}
    layers = {"conv": (normal(2, 3), normal(2, 3, seed=1)), "fc": (normal(2, 2),)}
    return Relevance(**base, ledger=ledger(), layers=layers, profile=profile(), rules_used={"AddmmBackward0": "zero"})


def ensemble():
    fields = {field.name: getattr(attribution(), field.name) for field in dataclasses.fields(Attribution)}
    spread = normal(2, 3, 4, 4, seed=2).abs()
    return EnsembleAttribution(**fields, deviation=spread, agreement=spread / spread.max(), models=20)


def table(**changes):
    rows = (
        LayerRow("", "Net", 1, "(2, 3)", 1210, 0, 0.25),
        LayerRow("conv", "Conv2d", 2, "(2, 8, 4, 4)", 1200, 1200, 0.75),
        LayerRow("exit", "Linear", 0, "", 10, 10, 0.0),
        LayerRow("new", "ReLU", None, "", 0, 0, None),
    )
    return LayerTable(**{"model": "Net", "rows": rows, "milliseconds": 12.5, "device": "cpu", **changes})


def maps():
    values = torch.arange(24.0).reshape(2, 3, 4)
    return ActivationMaps("conv", 1, values, (0, 5, 9), ("batch", "channel", "length"), None)


def top_inputs(**changes):
    fields = {
        "layer": "conv",
        "call": 0,
        "by": "relevance",
        "units": (3, 8),
        "index": torch.tensor([[4, 1], [1, 0]]),
        "values": torch.tensor([[2.0, 0.5], [1.0, -1.0]], dtype=torch.float64),
        "places": torch.tensor([[[0, 1], [2, 2]], [[1, 1], [0, 0]]]),
        "regions": torch.tensor([[0, 3], [1, 4], [2, 6]]).repeat(2, 2, 1, 1),
        "inputs": {0: normal(3, 6, 6), 1: normal(3, 6, 6, seed=1), 4: normal(3, 6, 6, seed=2)},
        "count": 9,
        "target": "class 1",
        "method": "relevance (epsilon), sum over places",
        "settings": SETTINGS,
    }
    return TopInputs(**{**fields, **changes})


def made(**changes):
    fields = {
        "images": normal(3, 3, 4, 4),
        "axes": ("batch", "channel", "height", "width"),
        "bounds": (-1.0, 1.0),
        "targets": ("class 1", "class 1", "unit 3 of conv"),
        "curve": normal(3, 5),
        "score": normal(3),
        "units": "score",
        "settings": SETTINGS,
        "checks": {"transformed": normal(3)},
    }
    return FeatureVisualization(**{**fields, **changes})


def recurrent(**changes):
    run = {name: normal(2, 4, 3, seed=seed) for seed, name in enumerate(("hidden", "update_gate"))}
    states = {"layer 0": run, "layer 0 reverse": run}
    fields = {"layer": "rnn", "kind": "GRU", "states": states, "lengths": torch.tensor([4, 4]), "settings": SETTINGS}
    return RecurrentStates(**{**fields, "checks": {"difference": normal(2)}, **changes})


def field(**changes):
    boxes = torch.tensor([[0, 3], [1, 4]]).expand(3, 3, 2, 2).clone()
    fields = {"layer": "conv", "call": 0, "boxes": boxes, "input_size": (5, 6), "place": (1, 1)}
    fields |= {"effective": normal(2, 5, 6).abs(), "settings": SETTINGS, "inputs": normal(2, 3, 5, 6)}
    return ReceptiveField(**{**fields, **changes})


def traversal():
    steps = torch.tensor([-1.0, 0.0, 1.0])
    outputs, effect = normal(2, 3, 1, 4, 4), torch.tensor([0.5, 0.25])
    return LatentTraversal(("latent 0", "latent 7"), steps, "set", outputs, outputs[0, 1], effect, SETTINGS)


def faithfulness_curve():
    shares = torch.linspace(0, 1, 5).double()
    return FaithfulnessCurve("insertion", shares, normal(2, 5).double(), "blur", "probability", "cat", SETTINGS)


def leaderboard():
    values = normal(3, 2, 4).double()
    groups = ("x", "x", "y", "z")
    return Leaderboard(("a", "b", "c"), ("one", "two"), values, (True, False), ("c",), "cat", SETTINGS, groups)


def group_effects():
    means, p = normal(2, 2, 4).double(), torch.rand(2, 4, dtype=torch.float64)
    parts = [normal(2, 4, seed=k).double() for k in range(3)]
    return GroupEffects("layer 0", ("unit",), ("a - b", "a - b (label 1)"), means, *parts, p, normal(2).double(), "1")


def comparison(kind=GroupComparison, **more):
    effects = {"0": group_effects(), "1": group_effects()}
    shared = (("a", "b"), (4, 5), effects, {"input": group_effects()}, profile(), {"2": "it did not run"})
    return kind(*shared, "cat", "mean activations", SETTINGS, **more)


SAID = ("What it means.", "What it does not.")


def ranking(**changes):
    fields = {"quantity": "drop", "items": ("a", "b", "c"), "values": normal(3, 2), "units": "score", "signed": True}
    fields |= {"method": "zero", "settings": SETTINGS, "series": ("one", "two"), "interval": normal(3, 2, 2)}
    return Ranking(**{**fields, "error": normal(3, 2).abs(), "null": normal(3, 2), "explanation": SAID, **changes})


def matrix(**changes):
    fields = {"quantity": "CKA", "rows": ("a", "b"), "columns": ("x", "y", "z"), "values": normal(2, 3).double()}
    fields |= {"axes": ("layer", "layer"), "units": "1", "signed": False, "method": "linear", "settings": SETTINGS}
    return Matrix(**{**fields, "null": normal(2, 3), "explanation": SAID, **changes})


def health(**changes):
    fields = {"quantity": "share", "layers": ("a", "b"), "values": normal(2, 2).abs(), "series": ("dead", "doubled")}
    fields |= {"units": "1", "signed": False, "method": "40 samples", "settings": SETTINGS, "explanation": SAID}
    fields |= {"dead": {"a": (1, 3)}, "doubles": {"b": ((2, 0, -0.999),)}, "mean": normal(2), "std": normal(2).abs()}
    return LayerHealth(**{**fields, "samples": torch.tensor([40, 40]), "bound": normal(2).abs(), **changes})


def lens(**changes):
    fields = {"quantity": "probability", "rows": ("a", "b", "c"), "columns": ("x", "y"), "values": normal(3, 2).abs()}
    fields |= {"axes": ("layer", "position"), "units": "1", "signed": False, "method": "lens", "settings": SETTINGS}
    fields |= {"targets": (4, 7), "scores": torch.tensor([0.5, 0.25]).expand(3, 2, 2), "names": {7: "seven"}}
    fields |= {"top": torch.tensor([[[4, 7], [1, 7]], [[2, 4], [7, 4]], [[4, 2], [7, 2]]]), "explanation": SAID}
    return LogitLens(**{**fields, **changes})


def curve(**changes):
    fields = {"quantity": "accuracy", "along": "eps", "points": torch.tensor([0.0, 0.1]), "series": ("fgsm", "pgd")}
    fields |= {"values": normal(2, 2), "units": "1", "method": "FGSM", "settings": SETTINGS, "error": normal(2, 2)}
    return Curve(**{**fields, "explanation": SAID, **changes})


def training():
    values = {"gradient norm": normal(3, 2).double().abs(), "drift": torch.tensor([[0.0, 0.1, float("nan")]] * 3)}
    layers = {"gradient norm": ("a", "b"), "drift": ("a", "b", "c")}
    logged = {"loss": torch.tensor([[0.0, 2.5], [4.0, 1.5]]).double()}
    checks = {"share of time": torch.tensor(0.04), "steps seen": torch.tensor(9)}
    steps, rows = torch.tensor([0, 4, 8]), torch.tensor([16, 16, 8])
    return TrainingHistory(steps, layers, values, logged, rows, "hooks on SGD.step", SETTINGS, checks, SAID)


def statistics():
    columns = [{"a": normal(3).double(), "a#1": normal(2).double()} for _ in range(6)]
    return UnitStatistics(*columns, samples=100, settings=SETTINGS)


def gradient_check():
    layers = (LayerGradient("a", 0, "Linear", 0.5, 1e-9, False, "the backward pass of Odd"),)
    return GradientCheck(*(normal(2, 3).double() for _ in range(4)), 1e-3, "differences in float64", "cat", layers)


def model_checks():
    return ModelChecks((finding(), Finding("the ledger closes", "not run", "budget")), gradient_check(), target="cat")


def finding():
    return Finding("the gradient is right", "serious", "gap 0.5", "every map is wrong", "fix it", 12.0, "gradient")


def adversarial():
    inputs, eps = normal(2, 3), torch.tensor([0.5, float("inf")]).double()
    flags, loss = torch.tensor([True, False]), normal(2).double()
    classes = torch.tensor([0, 1]), torch.tensor([1, 1])
    return AdversarialExamples(
        inputs + 0.5, inputs, eps, flags, *classes, loss, "another class", "FGSM, linf", SETTINGS
    )


def answer():
    prompt, said = "The cat sat. A dog ran.\n\nWho sat?", "The cat. It sat."
    return AnswerAttribution(
        quantity="logit of a part of the answer",
        rows=("0 The cat.", "1 It sat."),
        columns=("0 The cat sat.", "1 A dog ran."),
        values=torch.tensor([[4.2, -0.3], [2.0, 0.1]]).double(),
        axes=("part", "source"),
        units="nats",
        signed=True,
        method="relevance + ablation",
        settings=SETTINGS,
        error=torch.tensor([[0.4, 0.3], [0.5, 0.2]]).double(),
        explanation=("a", "b"),
        prompt=prompt,
        answer=said,
        spans=((0, 12), (13, 23)),
        part_spans=((0, 8), (8, 16)),
        scores=torch.tensor([-0.5, -1.5]).double(),
        intercept=torch.tensor([-4.0, -3.0]).double(),
        scale="logit",
        passes=12,
        seconds=3.2,
    )


def parts_of_a_score():
    return Contributions(
        ("a head 0", "a head 1", "b"), ("a", "a", "b"), ((0,), (1,), ()), normal(3, 2).double(), normal(3, 2).double(),
        ledger(), "head", "cat", ("cat", "dog"), "contributions", SETTINGS, ("a", "b"), normal(3, 2).double(),
    )  # fmt: skip


def graph_of_a_score():
    sent = normal(2, 3, 2).double()
    return AttributionGraph(
        ("input", "a", "b"), ("input", "a", "b"), sent.sum(dim=0), ("score", "b"), sent, normal(2, 2).double(),
        normal(2, 2).double(), ledger(), ("input",), "layer", "cat", None, "attribution graph", SETTINGS, "",
        ("a", "b"),
    )  # fmt: skip


def influence():
    labels = torch.tensor([0, 2, 1, 1])
    return Influence(normal(2, 4).double(), labels, labels[:2], False, "tracin", SETTINGS, ("a", "b"))


RESULTS = {
    "LayerGradient": lambda: gradient_check().layers[0],
    "GradientCheck": gradient_check,
    "Finding": finding,
    "ModelChecks": model_checks,
    "Attribution": attribution,
    "Relevance": relevance,
    "EnsembleAttribution": ensemble,
    "ActivationMaps": maps,
    "LayerTable": table,
    "LayerProfile": profile,
    "Ledger": ledger,
    "TopInputs": top_inputs,
    "AttentionWeights": lambda: AttentionWeights("Net", {"a": normal(1, 2, 3, 3)}, {"a": "softmax and product"}),
    "Routes": lambda: Routes("Net", (("a", "b", "b"), ("a",))),
    "RouteComparison": lambda: RouteComparison(("b",), (), {"a": (1.0, 2.0)}, 1, "a"),
    "FeatureVisualization": lambda: made(),
    "RecurrentStates": lambda: recurrent(),
    "ReceptiveField": lambda: field(),
    "LatentTraversal": lambda: traversal(),
    "FaithfulnessCurve": lambda: faithfulness_curve(),
    "AdversarialExamples": adversarial,
    "Leaderboard": lambda: leaderboard(),
    "LayerHealth": lambda: health(),
    "LogitLens": lambda: lens(),
    "Ranking": ranking,
    "Generation": generation,
    "SamplingAttribution": sampled,
    "AnswerAttribution": answer,
    "Steering": steering,
    "Influence": influence,
    "Contributions": parts_of_a_score,
    "AttributionGraph": graph_of_a_score,
    "Matrix": matrix,
    "Curve": curve,
    "TrainingHistory": training,
    "UnitStatistics": statistics,
    "GroupEffects": lambda: group_effects(),
    "GroupComparison": lambda: comparison(),
    "ErrorExplanation": lambda: comparison(
        ErrorExplanation, labels=torch.tensor([0, 1]), predicted=torch.tensor([0, 0]), used=torch.tensor([True, False])
    ),
    "Entry": lambda: ledger().entries[0],
}
VARIANTS = {
    **RESULTS,
    "bfloat16": lambda: attribution(values=normal(2, 3).bfloat16(), inputs=None),
    "half": lambda: attribution(values=normal(2, 3).half()),
    "float64": lambda: attribution(values=normal(2, 3).double(), axes=None),
    "integers and booleans": lambda: attribution(checks={"a": torch.tensor([1, 2]), "b": torch.tensor([True, False])}),
    "several inputs": lambda: attribution(values={"a": normal(2, 3), "b": normal(2, 5)}, inputs=None),
    "tokens": lambda: attribution(values=normal(2, 2), tokens=[["<s>", "Zürich\n"], ["a", "\u2603"]]),
    "part of a graph": lambda: attribution(values=normal(2, 3).requires_grad_() * 2),
    "not contiguous": lambda: attribution(values=normal(3, 2).T),
    "not finite": lambda: attribution(values=torch.tensor([[float("nan"), float("inf"), -0.0]])),
    "top inputs of several": lambda: top_inputs(regions=None, inputs={0: {"a": normal(2), "b": normal(3)}}),
    "attention in part": lambda: AttentionWeights(
        "Net", {"a": normal(1, 1, 1, 2)}, {"a": "by hand"}, {"a": (2,)}, {"a": (0, 1)}, "mean", [["x", "y", "z"]]
    ),
    "several series": lambda: profile(values=normal(3, 2), series=("a", "b"), error=None, null=normal(3, 2)),
}
