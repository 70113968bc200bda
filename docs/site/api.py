"""The pages of the API: every public name in one group, its text taken from its docstring."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from pathlib import Path

import layerlens
from layerlens.analyzers.saliency.saliency import known_methods

GROUPS = {
    "lens": ("Lens", "A model with its class names, tokenizer and forward; every analyzer is a method of it.", "Lens"),
    "capture": (
        "Capture, routes and edits",
        "What layers returned, in which order they ran, and what happens when they return something else.",
        """
        capture run functions Probe FunctionProbe Record Call Layers select input_of layers route
        compare_routes name_axes borrowed edits
        """,
    ),
    "targets": (
        "Targets",
        "What is scored, at the output or inside of the model.",
        """
        Target as_target contrast continuation symbol transcript probability area box instance neuron direction
        deep_dream
        """,
    ),
    "activation": (
        "Activation maps",
        "What units hold, see and prefer.",
        """
        activation_maps layer_maps grad_cam attention attention_rollout attention_rollout_map
        feature_visualization receptive_field recurrent_states latent_traversal
        """,
    ),
    "saliency": (
        "Saliency",
        "How much each input value contributed to a score: one door to all methods.",
        "saliency saliency_by_target model_uncertainty interactions mean_rank",
    ),
    "relevance": (
        "Relevance",
        "Layer-wise relevance propagation with its ledger, concepts, and rules.",
        """
        relevance relevance_by_target contributions attribution_graph Rulebook rules rank_concepts concept_relevance
        top_inputs tcav concept_activation Basis SparseAutoencoder basis feature_effects
        """,
    ),
    "sensitivity": (
        "Sensitivity, robustness, interventions, weights",
        "Which layers respond to the input, matter to the output, and with which weights.",
        """
        sensitivity jacobian lipschitz noise_response attack attack_curve attack_drift corruption_curve ablate patch
        circuit_faithfulness sobol morris weight_sensitivity
        """,
    ),
    "generation": (
        "Generation",
        "What made an answer, each step of a text, and a sampled picture.",
        "explain_answer explain_sampling generate steer",
    ),
    "dynamics": (
        "Layer dynamics and training",
        "How layers transform data, learn, overfit and transfer.",
        "similarity geometry health nonlinearity logit_lens watch linear_probe generalization_gap compare",
    ),
    "faithfulness": (
        "Faithfulness",
        "Whether a map is true of the model.",
        "evaluate cascading_randomization faithfulness check check_gradient",
    ),
    "groups": (
        "Groups and errors",
        "What distinguishes groups of samples inside a model.",
        "compare_groups explain_errors influence",
    ),
    "scale": (
        "Data sets",
        "Analyses of every sample, in bounded memory, by one process or many, and the stores that they fill.",
        "Data over open_store Store",
    ),
    "results": (
        "Results",
        "What analyzers return: data with `.plot()`, `.save()` and `.explain()`.",
        """
        load results ActivationMaps AdversarialExamples AnswerAttribution AttentionWeights AttributionGraph
        Contributions Attribution Curve EnsembleAttribution ErrorExplanation FaithfulnessCurve FeatureVisualization
        Finding Generation GroupComparison GroupEffects Guide Influence LatentTraversal LayerHealth LayerProfile
        LayerTable Leaderboard Ledger LogitLens Matrix MethodTable ModelChecks Ranking ReceptiveField RecurrentStates
        Relevance Routes SamplingAttribution Steering TopInputs TrainingHistory UnitStatistics
        """,
    ),
    "plotting": ("Figures", "Functions of results that return a `Plot`.", "plotting"),
    "extend": ("Write your own", "Everything that your own methods, rules and figures import.", "extend"),
    "errors": ("Errors", "What is raised: what failed, what was given, what to try.", "errors"),
}
"""Page -> its title, a sentence, and its public names of `layerlens`."""

MORE = {"results": ["layerlens.report", "layerlens.explorer"], "scale": ["layerlens.scale"]}
"""Page -> public modules that are not in `layerlens.__all__`."""


def check() -> None:
    """Check that every public name of layerlens is in one group.

    Raises:
        ValueError: if a name is missing, unknown, or listed twice.
    """
    grouped = sorted(name for _, _, names in GROUPS.values() for name in names.split())
    if grouped != sorted(layerlens.__all__):
        missing, stale = set(layerlens.__all__) - set(grouped), set(grouped) - set(layerlens.__all__)
        twice = sorted({name for name in grouped if grouped.count(name) > 1})
        raise ValueError(f"docs/site/api.py: missing {sorted(missing)}, no longer there {sorted(stale)}, twice {twice}")


def write(folder: Path) -> None:
    """Write a page for each group, and an index."""
    check()
    folder.mkdir(parents=True, exist_ok=True)
    for page, (title, sentence, names) in GROUPS.items():
        parts = [f"# {title}\n\n{sentence}\n"]
        for name in names.split():
            value = getattr(layerlens, name)
            parts.append(module(f"layerlens.{name}") if inspect.ismodule(value) else entry(f"layerlens.{name}", value))
        parts += [module(name) for name in MORE.get(page, [])]
        if page == "saliency":
            parts.append(saliency_methods())
        (folder / f"{page}.md").write_text("\n".join(parts), encoding="utf-8")
    rows = "\n".join(f"| [{title}]({page}.md) | {sentence} |" for page, (title, sentence, _) in GROUPS.items())
    tree = "\n".join(GROUPS)
    (folder / "index.md").write_text(INDEX.format(rows=rows, tree=tree), encoding="utf-8")


INDEX = """# API

Every public name, from its docstring. A function of `layerlens` takes the model first; the method of `Lens` with the
same name takes everything else.

| page | what it holds |
| --- | --- |
{rows}

```{{toctree}}
:hidden:

{tree}
```
"""


def entry(path: str, value: object) -> str:
    """Return the directive that documents one object."""
    if inspect.isclass(value):
        lens = path == "layerlens.Lens"  # its methods are in several bases, which have no page
        return directive("autoclass", path, ":members:\n" + (":inherited-members:" if lens else ":show-inheritance:"))
    if callable(value):
        return directive("autofunction", path)
    if isinstance(value, dict):
        return f"### `{path}`\n\nA table by name: {', '.join(f'`{name}`' for name in value)}.\n"
    if isinstance(value, (str, types.UnionType)) or typing.get_origin(value) is typing.Union:  # a type alias
        return f"### `{path}`\n\nThe type `{value}`.\n"
    raise TypeError(f"docs/site/api.py: {path} is a {type(value).__name__}; say how it is shown.")


def directive(kind: str, path: str, options: str = "") -> str:
    """Return one directive of autodoc for a Markdown page."""
    indented = "\n".join(f"   {line}" for line in options.split("\n")) if options else ""
    return f"```{{eval-rst}}\n.. {kind}:: {path}\n{indented}\n```\n"


def module(path: str) -> str:
    """Return a section with the public names of a module that are in no other group."""
    found = importlib.import_module(path)
    others = [layerlens] + [layerlens.errors, layerlens.plotting, layerlens.results, layerlens.rules] * (
        path == "layerlens.extend"
    )
    heading = f"## `{path}`\n\n{inspect.getdoc(found)}\n"
    names = getattr(found, "__all__", None) or [name for name, value in vars(found).items() if defined(value, path)]
    values = {name: getattr(found, name) for name in names if not inspect.ismodule(getattr(found, name))}
    seen = [name for name, value in values.items() if any(getattr(other, name, None) is value for other in others)]
    shown = [entry(f"{path}.{name}", value) for name, value in values.items() if name not in seen]
    if path == "layerlens.extend":
        heading += f"\nAlso here, with entries in other groups: {', '.join(f'`{name}`' for name in seen)}.\n"
    return "\n".join([heading, *shown])


def defined(value: object, path: str) -> bool:
    """Whether a public function or class is defined in the module."""
    public = not getattr(value, "__name__", "_").startswith("_")
    return (
        public and getattr(value, "__module__", None) == path and (inspect.isclass(value) or inspect.isfunction(value))
    )


def saliency_methods() -> str:
    """Return a section with the functions behind `saliency(method=...)`."""
    parts = [
        "## Methods by name\n\nThe values of `method=`, with equation and options; `saliency` passes model and input.\n"
    ]
    for row in sorted(known_methods().values(), key=lambda row: row.name):
        if row.name not in layerlens.__all__:
            function = row.function
            parts.append(f"### {row.name}\n")
            parts.append(directive("autofunction", f"{function.__module__}.{function.__name__}"))
    return "\n".join(parts)
