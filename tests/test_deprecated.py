"""Old import paths: each one still works, and says where the module or the name is now."""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import layerlens
from layerlens import deprecated

ROOT = Path(layerlens.__file__).parent
OLD = [
    ("target", "Target as_target", "targets.target"),
    ("layers", "Layers select", "model.layers"),
    ("borrow", "borrowed", "model.borrowed"),
    ("probe", "Probe", "probes.probe"),
    ("record", "Record", "probes.record"),
    ("functions", "FunctionProbe capture_functions", "probes.function_probe"),
    ("capturing", "capture run", "probes.run"),
    ("nested", "", "model.trees"),
    ("neurons", "neuron direction read_units", "targets.units"),
    ("contrasting", "contrast", "targets.contrast"),
    ("analyzers.methods", "known_methods", "analyzers.common.registry"),
    ("analyzers.activation.cam", "grad_cam score_cam", "analyzers.saliency.cam"),
    ("analyzers.activation.cam.grad_cam", "grad_cam", "analyzers.saliency.cam.gradient_cams"),
    ("analyzers.saliency.blur_ig", "blur_ig", "analyzers.saliency.path.blur_ig"),
    ("plotting.board", "Board", "plotting.drawing.canvas"),
    ("plotting.heatmap", "heatmap", "plotting.figures.heatmap"),
    ("results.layers", "LayerProfile", "results.values.layer_profile"),
]
LEFT = [
    ("analyzers", "layer_table route compare_routes", "analyzers.structure"),
    ("analyzers.activation", "grad_cam layer_cam attention_rollout_map", "analyzers.saliency"),
    ("analyzers.relevance", "concept_relevance rank_concepts Concept top_inputs", "analyzers.concepts"),
    ("analyzers.activation.attention", "attention_weights", "analyzers.activation.attention.weights"),
    ("scale.store", "open_store", "scale.store.store"),
]


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_every_module_that_moved_is_where_the_table_says():
    assert len(deprecated.modules()) > 200
    assert [new for new in deprecated.modules().values() if not is_module(new)] == []
    assert not [name for name in deprecated.modules() if (ROOT / Path(*name.split(".")).with_suffix(".py")).is_file()]


@pytest.mark.parametrize("old, names, new", OLD)
def test_an_old_module_imports_and_says_where_it_is(old, names, new):
    sys.modules.pop(f"layerlens.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"^layerlens\.{old} is now layerlens\.{new}\.$") as caught:
        module = importlib.import_module(f"layerlens.{old}")
    assert len(caught) == 1
    for name in names.split():
        assert callable(getattr(module, name))


@pytest.mark.parametrize("package, names, new", LEFT)
def test_a_name_that_left_a_package_is_still_found_there(package, names, new):
    module, home = importlib.import_module(f"layerlens.{package}"), importlib.import_module(f"layerlens.{new}")
    for name in names.split():
        now = deprecated.RENAMED.get(name, name)
        with pytest.warns(DeprecationWarning, match=rf"^layerlens\.{package}\.{name} is now layerlens\.{new}\.{now}\."):
            assert getattr(module, name) is getattr(home, now)
    with pytest.raises(AttributeError, match="has no attribute 'nowhere'"):
        module.nowhere  # noqa: B018


@pytest.mark.parametrize("old, new", deprecated.RENAMED.items())
def test_a_function_has_the_name_of_the_method_of_a_lens(old, new):
    with pytest.warns(DeprecationWarning, match=rf"^layerlens\.{old} is now layerlens\.{new}\."):
        assert getattr(layerlens, old) is getattr(layerlens, new)
    assert layerlens.Lens(torch.nn.ReLU()).__getattribute__(new).__name__ == new


def test_the_warning_is_at_the_line_of_the_import():
    sys.modules.pop("layerlens.borrow", None)
    with pytest.warns(DeprecationWarning) as caught:
        import layerlens.borrow  # noqa: F401
    assert caught[0].filename == __file__


def test_an_old_module_does_not_hide_a_function_of_its_name():
    from layerlens.analyzers import saliency

    function = saliency.blur_ig
    sys.modules.pop("layerlens.analyzers.saliency.blur_ig", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from layerlens.analyzers.saliency.blur_ig import blur_ig
    assert saliency.blur_ig is blur_ig is function


def test_a_package_holds_the_function_that_its_module_held():
    from layerlens.analyzers.dynamics.geometry import geometry
    from layerlens.analyzers.dynamics.similarity import similarity

    assert (geometry, similarity) == (layerlens.geometry, layerlens.similarity)


def test_an_unknown_module_is_unknown():
    with pytest.raises(ModuleNotFoundError, match=r"layerlens\.nowhere"):
        importlib.import_module("layerlens.nowhere")


def test_every_old_module_imports():
    program = (
        "import importlib, layerlens.deprecated as d\nfor n in d.modules(): importlib.import_module(f'layerlens.{n}')"
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, timeout=300)
    assert run.returncode == 0, run.stderr


def test_an_import_of_an_old_module_leaves_the_functions_of_its_package():
    code = (
        "import layerlens.analyzers.sensitivity.jacobian, layerlens.layers\n"
        "from layerlens import Lens\n"
        "from torch import nn\n"
        "assert Lens.jacobian.__name__ == 'jacobian'\n"
        "for _ in range(2):\n"
        "    assert layerlens.layers.Layers.__name__ == 'Layers'\n"
        "    assert layerlens.layers(nn.Linear(2, 2)).rows\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
