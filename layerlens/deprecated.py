"""Old import paths: what moved since 0.1 still imports, with a `DeprecationWarning` that says where it is."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

from .errors import warn

_MOVED: Final = {
    ("", ""): "wrapped=wrapped_model",
    ("", "inputs"): "inputs stream=batches",
    ("", "model"): """
        borrow=borrowed checkpoints=checkpointing digest=hashing layers matches=selection nested=trees placement
        spans=call_tracking tensor_parallel=placement
    """,
    ("", "probes"): """
        call capturing=run functions=function_probe probe record record_batches=record record_files=storage
        record_views=export
    """,
    ("", "targets"): """
        areas=regions contrasting=contrast language=tokens neurons=units outputs=target softmaxed=probability target
    """,
    ("analyzers", "analyzers.common"): "methods=registry score=scorer texts=token_inputs warn=scorer",
    ("analyzers", "model"): "fastpath",
    ("analyzers", "analyzers.common.features"): "features=layer_features",
    ("analyzers", "analyzers.common.leaves"): "layout=leaves leaves places=layer_leaf token_uses=token_leaf",
    ("analyzers", "analyzers.saliency.path"): "tap=layer_paths",
    ("analyzers", "analyzers.structure"): "layer_table routes",
    ("analyzers.activation", "analyzers.activation"): "maps=activation_maps",
    ("analyzers.activation", "analyzers.activation.attention"): "attention=weights rollout softmaxes=written_softmax",
    ("analyzers.activation", "analyzers.common.calls"): "survey=call_shapes",
    ("analyzers.activation", "analyzers.concepts"): "regions=unit_regions",
    ("analyzers.activation", "analyzers.saliency.cam"): "rollout_map",
    ("analyzers.activation.cam", "analyzers.saliency.cam"): """
        ablation_cam=ablation_cams cam=gradient_cams candidates=layer_choice eigen_cam=gradient_cams
        eigen_grad_cam=gradient_cams finer_cam=composed_cams grad_cam=gradient_cams
        grad_cam_plus_plus=gradient_cams guided_grad_cam=composed_cams hi_res_cam=gradient_cams
        layer_cam=gradient_cams maps=class_map score_cam=ablation_cams seat=layer_view
        trials=ablation_cams x_grad_cam=gradient_cams
    """,
    ("analyzers.activation.feature_visualization", "analyzers.activation.feature_visualization"): """
        ascent=feature_visualization method=feature_visualization
    """,
    ("analyzers.activation.recurrent", "analyzers.activation.recurrent"): "cells=states",
    ("analyzers.dynamics", "analyzers.common.features"): "reading=feature_batches",
    ("analyzers.dynamics", "analyzers.dynamics.blocks"): """
        head=logit_lens linear_fit=nonlinearity logit_lens nonlinearity pairs=input_output_pairs residual
        stack=block_stack windows
    """,
    ("analyzers.dynamics", "analyzers.dynamics.geometry"): "geometry health shape=dimensions units=unit_moments",
    ("analyzers.dynamics", "analyzers.dynamics.readouts"): """
        compare generalization_gap linear_probe readout=linear_readout
    """,
    ("analyzers.dynamics", "analyzers.dynamics.similarity"): """
        alike=similarity_measures blocks=gram_matrices similarity
    """,
    ("analyzers.dynamics", "analyzers.dynamics.training"): """
        drift layer_statistics lightning moves=layer_statistics training_record watch watching=watch
    """,
    ("analyzers.dynamics", "analyzers.sensitivity.weights"): "cloud=measured_effect",
    ("analyzers.faithfulness", "analyzers.common"): "correlation=statistics",
    ("analyzers.faithfulness", "analyzers.faithfulness.metrics"): """
        curves=insertion_deletion deletion=insertion_deletion erasure=insertion_deletion infidelity
        insertion=insertion_deletion localization metrics=table places=place_ranks road sparsity
    """,
    ("analyzers.relevance", "analyzers.common.features"): "batch_targets",
    ("analyzers.relevance", "analyzers.concepts"): "concepts=concept_relevance ranking=top_inputs top_inputs",
    ("analyzers.relevance", "analyzers.graph"): "constants=added_constants graph recorder sources=added_constants",
    ("analyzers.relevance", "analyzers.relevance"): "centred=centered_relevance parameters=record propagate=relevance",
    ("analyzers.relevance", "analyzers.relevance.rules"): "rulebook",
    ("analyzers.relevance.linear", "analyzers.graph"): "maps=linear_operations sites=linear_operations",
    ("analyzers.relevance.linear", "analyzers.relevance.rules"): "rules=linear",
    ("analyzers.relevance.rules", "analyzers.graph"): "row=operation",
    ("analyzers.relevance.rules", "analyzers.relevance.rules"): "register=operation_table",
    ("analyzers.saliency", "analyzers.common"): "differentiate=batch_size",
    ("analyzers.saliency", "analyzers.common.features"): "baselines gaussian=baselines references superpixels",
    ("analyzers.saliency", "analyzers.saliency"): "methods=saliency",
    ("analyzers.saliency", "analyzers.saliency.deeplift"): "deep_shap",
    ("analyzers.saliency", "analyzers.saliency.gradient"): """
        gradients noisy=smooth_grad rectified=guided_backprop smooth=smooth_grad smooth_grad_squared=smooth_grad
        var_grad=smooth_grad
    """,
    ("analyzers.saliency", "analyzers.saliency.path"): """
        blur_ig complete=completeness gradient_shap guided_ig guided_path=guided_ig integrated=integrated_gradients
        internal_influence=layer_paths layer_conductance=layer_paths polyline=blur_ig straight=layer_paths xrai
    """,
    ("analyzers.saliency", "analyzers.saliency.perturbation"): "leave_one_out",
    ("analyzers.saliency.deeplift", "analyzers.saliency.deeplift"): "method=deep_lift",
    ("analyzers.saliency.perturbation", "analyzers.common.features"): "coalitions features=input_features",
    ("analyzers.saliency.perturbation", "analyzers.saliency.perturbation"): """
        kernel_shap=shapley ridge=rise settle=game smooth_masks=rise
    """,
    ("analyzers.sensitivity", "analyzers.common"): "chance=null_model options=messages registry=measure_registry",
    ("analyzers.sensitivity", "analyzers.common.calls"): "sites=measured_calls",
    ("analyzers.sensitivity", "analyzers.sensitivity"): "job=stepped_runs methods=sensitivity metrics=output_metrics",
    ("analyzers.sensitivity", "analyzers.sensitivity.local"): """
        differences=directional_derivatives estimate=jacobian jacobian lanczos lipschitz noise=noise_response
        perturb=noise_response products=jacobian_products routes=directional_derivatives spectrum=lipschitz
    """,
    ("analyzers.sensitivity.inputs", "analyzers.sensitivity.inputs"): """
        designs=jansen factors=feature_names rows=distribution
    """,
    ("analyzers.sensitivity.interventions", "analyzers.sensitivity.interventions"): """
        batching=trials exchange=trials find=intervention_sites reference=replacements screen=first_order
        values=replacements words=results
    """,
    (
        "analyzers.sensitivity.interventions",
        "analyzers.common.parts",
    ): "grid parts=grid heads hook_points taps=hook_points",
    ("analyzers.sensitivity.robustness", "analyzers.sensitivity.robustness"): """
        corrupting=corruption_curve options=attacks parts=sample_chunks verdict=prediction_change
    """,
    ("analyzers.sensitivity.weights", "analyzers.sensitivity.weights"): """
        damage=prune_and_quantize measured=measured_effect owners=weight_task samples=labeled_batches task=weight_task
        trace=hessian
    """,
    ("demo", "analyzers.common.features"): "page=layer_features",
    ("demo", "demo"): "subject=demo_subject",
    ("plotting", "plotting"): "styling=style",
    ("plotting", "plotting.drawing"): """
        bars board=canvas cells=matrix_cells colorbar images layout=canvas panels=image_panels
        samples=attribution_sample text wording=token_text
    """,
    ("plotting", "plotting.figures"): """
        activation_mosaic attention channels compare_methods curves decades=training faithfulness_curve feature_gallery
        feature_visualization gradient_flow group_effects heatmap latent_traversal layer_profile leaderboard matrix
        method_grid model_map model_tree=model_map overlay_grid receptive_field recurrent_states relevance_flow
        scales=curves sensitivity thumbnail timeseries tokens tokens_html top_inputs training
    """,
    ("report", "analyzers.sensitivity.local"): "outputs=lanczos",
    ("report", "report"): "alt=alt_text examine=sample_section facts=provenance make=assemble told=assemble",
    ("results", "results"): "combining=arithmetic frames=tables",
    ("results", "results.maps"): """
        attention=attention_weights attribution feature_visualization receptive_field recurrent=recurrent_states
        top_inputs traversal=latent_traversal words=token_spans
    """,
    ("results", "results.reports"): "groups=group_comparison layer_table leaderboard logit_lens method_table routes",
    ("results", "results.values"): """
        curve explained faithfulness=faithfulness_curve health=layer_health layers=layer_profile ledger matrix ranking
        training=training_history unit_statistics
    """,
    ("scale", "scale.data"): "ahead=background reading=as_source source",
    ("scale", "scale.run"): "run=work start=lifecycle",
    ("scale", "scale.store"): """
        block=shard_builder columns manifest plan rebuild=attributions settings=fingerprint shard_files
        shelves=shard_storage store
    """,
    ("scale.engines", "scale.engines"): "base=local",
}
"""(old folder, new folder) -> modules: the name, or `old=new` if it changed."""

_NAMES: Final[dict[str, dict[str, str]]] = {
    "analyzers": {"analyzers.structure": "compare_routes layer_table route"},
    "analyzers.activation": {
        "analyzers.saliency": """
            ablation_cam attention_rollout_map eigen_cam eigen_grad_cam finer_cam grad_cam grad_cam_plus_plus
            guided_grad_cam hi_res_cam layer_cam score_cam x_grad_cam
        """
    },
    "analyzers.relevance": {"analyzers.concepts": "Concept concept_relevance rank_concepts top_inputs"},
    "analyzers.methods": {"analyzers.saliency.saliency": "known_methods"},
    "analyzers.saliency.differentiate": {
        "analyzers.common.scorer": "Leaves freeze gradients warn_of_zeros",
        "analyzers.saliency.path.completeness": "completeness_gap",
    },
    "neurons": {"probes.export": "read_units"},
    "plotting.board": {"plotting.drawing.canvas": "Board=Canvas"},
    "scale.manifest": {"scale.data.source": "DIGEST"},
}
"""Old package or module -> new module -> names that went another way than the rest, or `old=new` if one changed."""

RENAMED: Final = {"attention_weights": "attention", "capture_functions": "functions", "layer_table": "layers"}
"""Old name -> name of public functions, which have the names of the methods of `Lens` now."""

_PACKAGES: Final = {
    "analyzers.activation.cam": "analyzers.saliency.cam",
    "analyzers.relevance.linear": "analyzers.relevance.rules.linear",
}
"""Packages that moved."""

_ROOT: Final = f"{__package__}."


@functools.cache
def modules() -> dict[str, str]:
    """Return old module -> new module, both relative to the package."""
    moved = dict(_PACKAGES)
    for (old_folder, new_folder), entries in _MOVED.items():
        for entry in entries.split():
            old, _, new = entry.partition("=")
            moved[f"{old_folder}.{old}".lstrip(".")] = f"{new_folder}.{new or old}".lstrip(".")
    return moved


@functools.cache
def names(old: str) -> dict[str, tuple[str, str]]:
    """Return old name -> (new module, new name) for the names that left the package or module `old`."""
    moved = {}
    for home, entries in _NAMES.get(old, {}).items():
        for entry in entries.split():
            name, _, new = entry.partition("=")
            moved[name] = (home, new or RENAMED.get(name, name))
    return moved


def keep_old_names(package: str, renamed: Mapping[str, str] = {}) -> None:
    """Let a package answer to the names that it held before, with a warning.

    Args:
        package: its `__name__`.
        renamed: old name -> its name in the package.
    """
    old = package.removeprefix(_ROOT)

    def __getattr__(name: str) -> Any:
        if name in renamed:
            warn(f"{package}.{name} is now {package}.{renamed[name]}.", DeprecationWarning)
            return getattr(sys.modules[package], renamed[name])
        home, new = names(old).get(name, (modules().get(old), RENAMED.get(name, name)))
        submodule = PathFinder.find_spec(f"{package}.{name}", sys.modules[package].__path__)
        unknown = home is None or name.startswith("__") or submodule is not None
        module = None if unknown else importlib.import_module(f"{_ROOT}{home}")
        if not hasattr(module, new):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warn(f"{package}.{name} is now {_ROOT}{home}.{new}.", DeprecationWarning)
        return getattr(module, new)

    sys.modules[package].__dict__["__getattr__"] = __getattr__


class _Package(ModuleType):
    """A package whose functions keep their names when old modules of the same names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not isinstance(value, _MovedModule) or name not in getattr(self, "__all__", ()):
            super().__setattr__(name, value)


class _MovedModule(ModuleType):
    """A module at an old path, with the contents of the new one.

    Importing a module binds it in its package, unless that holds a function of the same name. Where the function took
    the name of the module, the module stays, and calls the function.
    """

    def __init__(self, name: str, new: ModuleType) -> None:
        super().__init__(name, new.__doc__)
        parent, _, self._child = name.rpartition(".")
        self._new, self._package = new, sys.modules[parent]
        held = self._child in getattr(self._package, "__all__", ())
        self.__wrapped__ = getattr(self._package, self._child) if held else None  # its signature is shown
        if held and parent != __package__:
            self._package.__class__ = _Package
        if hasattr(new, "__path__"):
            self.__path__: list[str] = []  # the modules in it are found by the table, never as files

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function of the package that has the name of the module.

        Raises:
            TypeError: when there is none.
        """
        if self.__wrapped__ is None:
            raise TypeError(f"the module {self.__name__} is not callable")
        return self.__wrapped__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        home, new = names(self.__name__.removeprefix(_ROOT)).get(name, (None, RENAMED.get(name, name)))
        return getattr(self._new if home is None else importlib.import_module(_ROOT + home), new)

    def __dir__(self) -> list[str]:
        return dir(self._new)


class _Finder:
    """Finds modules at their old paths."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """Return how to load a module that moved, with a warning; None for any other."""
        old = name.removeprefix(_ROOT)
        home = modules().get(old) if old != name else None
        if home is None or getattr(PathFinder.find_spec(name, path), "origin", None):  # a package has the name now
            return None
        warn(f"{name} is now {_ROOT}{home}.", DeprecationWarning)
        return ModuleSpec(name, _Loader(), origin=_ROOT + home, is_package=old in _PACKAGES)


class _Loader(Loader):
    """Loads what `_Finder` found."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        assert spec.origin is not None
        return _MovedModule(spec.name, importlib.import_module(spec.origin))

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


def install() -> None:
    """Make the old paths importable; the package calls this once."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
