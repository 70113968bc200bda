import numpy as np
import pytest
import torch

from layerlens.errors import TargetError
from layerlens.targets.contrast import contrast
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Target, as_target

OUT = torch.tensor([[1.0, 5.0, 3.0], [7.0, 2.0, 4.0]])
NAMES = ["cat", "dog", "tabby cat"]


def scores(spec, output=OUT, **options):
    return as_target(spec, **options)(output).tolist()


# -- every kind of spec ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected", "label"),
    [
        (1, [5, 2], "class 1"),
        (-1, [3, 4], "class -1"),
        (np.int64(2), [3, 4], "class 2"),
        (torch.tensor(2), [3, 4], "class 2"),
        (np.array(2), [3, 4], "class 2"),
        ([1, 0], [5, 7], "class 1, class 0"),
        (torch.tensor([1, 0]), [5, 7], "class 1, class 0"),
        (torch.tensor([1, 0], dtype=torch.int32), [5, 7], "class 1, class 0"),
        (np.array([1, 0]), [5, 7], "class 1, class 0"),
        ([np.int64(2), -1], [3, 4], "class 2, class -1"),
        ([2, 2], [3, 4], "class 2"),
        ((0,), [1, 7], "(0,)"),
        (lambda out: out.sum(dim=1), [9, 13], "<lambda>"),
        (None, [5, 7], "predicted class"),
        (Target(lambda out, rows: out[:, 0], "mine"), [1, 7], "mine"),
    ],
    ids=lambda part: str(part).partition(" at 0x")[0],  # the same name in every process
)
def test_a_spec_becomes_scores_and_a_label(spec, expected, label):
    assert scores(spec) == expected
    assert as_target(spec).label == label


def test_names_become_classes():
    assert scores("dog", names=NAMES) == [5, 2] and as_target("dog", names=NAMES).label == "dog"
    assert scores("TABBY CAT", names=NAMES) == [3, 4]
    assert scores("dog", names={1: "dog", 7: "bird"}) == [5, 2]
    assert as_target(1, names=NAMES).label == "dog"
    assert as_target(5, names=NAMES).label == "class 5"
    assert as_target([0, 1], names={0: "cat"}).label == "cat, class 1"


def test_many_classes_have_a_short_label():
    assert as_target([0, 1, 2, 3]).label == "class 0, class 1, class 2, ... (4 classes)"


def test_a_tuple_indexes_the_axes_after_the_batch():
    output = torch.arange(24.0).reshape(2, 3, 4)
    assert scores((-1, 2), output) == [10, 22]
    assert scores((0, "dog"), output, names=NAMES) == [1, 13]
    assert scores((), torch.tensor([1.0, 2.0])) == [1, 2]


def test_a_vector_of_values_needs_no_class():
    values = torch.tensor([3.0, -1.0])
    assert scores(None, values) == scores(0, values) == scores(None, values.unsqueeze(1)) == [3, -1]


def test_gradients_flow_through_every_kind():
    for spec in (1, [1, 0], None, (1,), contrast(0, 1), lambda out: out.mean(dim=1), 2 * as_target(0)):
        output = OUT.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(as_target(spec)(output).sum(), output)
        assert gradient.any()


# -- targets that depend on the output ---------------------------------------------------------------------------------


def test_the_predicted_class_is_chosen_once():
    target = as_target(None, names=NAMES).resolve(OUT)
    assert target.label == "dog, cat (predicted)"
    assert target(-OUT).tolist() == [-5, -7]  # not the class that -OUT would predict
    assert target.resolve(-OUT) is target


def test_choices_inside_of_sums_are_made_too():
    target = contrast(None, 0).resolve(OUT)
    assert target.label == "class 1, class 0 (predicted) - class 0"
    assert target(OUT).tolist() == [4, 0] and target(-OUT).tolist() == [-4, 0]
    assert (2 * as_target(None)).resolve(OUT)(-OUT).tolist() == [-10, -14]


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_targets_combine():
    a, b = as_target(0), as_target(1)
    assert (a - b)(OUT).tolist() == [-4, 5] == contrast(0, 1)(OUT).tolist()
    assert (a + b)(OUT).tolist() == [6, 9]
    assert (0.5 * a)(OUT).tolist() == (a * 0.5)(OUT).tolist() == [0.5, 3.5]
    assert (a - b).label == "class 0 - class 1" and (a + b).label == "class 0 + class 1"
    assert (2 * (a - b)).label == "2 * (class 0 - class 1)"
    assert contrast("cat", "dog", names=NAMES).label == "cat - dog"


# -- rows: samples repeated by a method --------------------------------------------------------------------------------


def test_rows_name_the_sample_that_each_score_belongs_to():
    repeated = OUT[[0, 0, 1, 1]]
    rows = torch.tensor([0, 0, 1, 1])
    assert as_target([1, 0])(repeated, rows).tolist() == [5, 5, 7, 7]
    assert as_target(None).resolve(OUT)(repeated, rows).tolist() == [5, 5, 7, 7]
    assert contrast([1, 0], 2)(repeated, rows).tolist() == [2, 2, 3, 3]
    assert as_target([1, 0])(OUT[1:], torch.tensor([1])).tolist() == [7]


# -- nested outputs ----------------------------------------------------------------------------------------------------


def test_the_main_output_is_found_by_name_then_by_kind():
    assert main_output({"hidden": OUT * 0, "logits": OUT}) is OUT
    assert main_output((None, torch.ones(2, dtype=torch.long), OUT)) is OUT
    assert main_output({"mu": OUT * 0, "reconstruction": OUT}) is OUT
    assert scores(1, {"loss": None, "logits": OUT}) == [5, 2]
    with pytest.raises(TargetError) as error:
        main_output({"ids": torch.ones(2, dtype=torch.long)})
    assert str(error.value) == "the model returned dict with ids, which holds no floating-point tensor to score."


def test_every_case_is_scored_with_a_label(case):
    with torch.no_grad():
        x = case.example()
        model = case.build()
        output = model(**x) if isinstance(x, dict) else model(x)
    target = as_target(case.target).resolve(output)
    assert target(output).shape == (2,) and target.label


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (True, "a target cannot be True or False; give a class index, a name or a function."),
        (torch.tensor(1.5), "a tensor target must hold one class index per sample, got float32 ()."),
        (torch.tensor([0.0, 1.0]), "a tensor target must hold one class index per sample, got float32 (2,)."),
        (torch.tensor([True, False]), "a tensor target must hold one class index per sample, got bool (2,)."),
        ([True, False], "a tensor target must hold one class index per sample, got bool (2,)."),
        (torch.ones(2, 3, dtype=torch.long), "a tensor target must hold one class index per sample, got int64 (2, 3)."),
        (np.array([0.5]), "a tensor target must hold one class index per sample, got float64 (1,)."),
        ([], "cannot read a target from list of 0. Give a class index, a name, one index per sample,"),
        ([1, "dog"], "target 'dog' is a name, but no class names are known: Lens(model, class_names=...)."),
        ([1, 0.5], "cannot read a target from float."),
        (("cat", [1]), "the tuple ('cat', [1]) is not an index into the axes after the batch"),
        (1.5, "cannot read a target from float."),
        ({"a": 1}, "cannot read a target from dict with a."),
        ("dog", "target 'dog' is a name, but no class names are known: Lens(model, class_names=...)."),
    ],
    ids=str,
)
def test_what_is_no_target_is_refused(spec, text):
    with pytest.raises(TargetError) as error:
        as_target(spec)
    assert str(error.value).startswith(text)


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(TargetError) as error:
        as_target("tabby", names=NAMES)
    assert str(error.value) == "no class is named 'tabby' among 3. Closest: tabby cat."
    with pytest.raises(TargetError, match=r"no class is named 'zzz' among 3\. Known: "):
        as_target((0, "zzz"), names=NAMES)


@pytest.mark.parametrize(
    ("spec", "output", "text"),
    [
        (3, OUT, "class 3 is out of range: the output has 3 classes (0 to 2)."),
        (-4, OUT, "class -4 is out of range: the output has 3 classes (0 to 2)."),
        ([0, 9], OUT, "class 9 is out of range: the output has 3 classes (0 to 2)."),
        (
            [0],
            OUT,
            "the target is a list of 1 for a batch of 2; a list holds one target per sample. "
            "Give one target, without a list, for all samples.",
        ),
        ((5,), OUT, "target (5,) is out of range for an output of shape (2, 3)."),
        ((0, 1), OUT, "target (0, 1) has 2 entries; the output (2, 3) needs 1, one for each axis after the batch."),
        (1, torch.ones(2), "class 1 is out of range: the output has 1 classes (0 to 0)."),
    ],
)
def test_a_target_that_does_not_fit_the_output(spec, output, text):
    with pytest.raises(TargetError) as error:
        as_target(spec)(output)
    assert str(error.value) == text


@pytest.mark.parametrize("spec", [0, [0, 1], None, contrast(0, 1)], ids=["int", "list", "none", "contrast"])
def test_a_class_of_an_output_with_more_axes_is_refused_with_advice(spec):
    with pytest.raises(TargetError) as error:
        as_target(spec)(torch.ones(2, 4, 9))
    text = str(error.value)
    assert text.startswith("the output has shape (2, 4, 9), so a class alone does not name one score per sample.")
    assert "(position, class) = (-1, 5)" in text and "lambda out: out.mean(dim=(1, 2, 3))" in text


def everything(output):
    return output.sum()


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (everything, "target 'everything' returned shape () for 2 sample(s); it must return one score per sample"),
        (lambda out: out, "target '<lambda>' returned shape (2, 3) for 2 sample(s)"),
        (lambda out: out[:1, 0], "target '<lambda>' returned shape (1,) for 2 sample(s)"),
        (lambda out: 3.0, "target '<lambda>' returned float; it must return a tensor (batch,)."),
        (lambda out: None, "target '<lambda>' returned NoneType; it must return a tensor (batch,)."),
    ],
)
def test_a_function_must_return_one_score_per_sample(function, text):
    with pytest.raises(TargetError) as error:
        as_target(function)(OUT)
    assert str(error.value).startswith(text)


def test_a_scalar_will_do_for_one_sample():
    assert as_target(everything)(OUT[:1]).tolist() == [9]


def test_one_number_for_several_samples_is_advised_on():
    with pytest.raises(TargetError, match=r"output\[:, 3\], not output\[0, 3\]"):
        as_target(everything)(OUT)


def test_a_function_may_take_the_samples_of_its_rows():
    classes, rows = torch.tensor([1, 0]), torch.tensor([1, 0, 0])

    def own(output, samples):
        return output[torch.arange(len(output)), classes[samples]]

    assert as_target(own)(OUT).tolist() == [5, 7]
    assert as_target(own)(OUT[rows], rows).tolist() == [7, 5, 5]
    assert (2 * as_target(own))(OUT[rows], rows).tolist() == [14, 10, 10]
    assert as_target(lambda output, power=1: output[:, 0] ** power)(OUT).tolist() == [1, 7]
    assert as_target(lambda output, *, samples: output[:, 0] + samples)(OUT).tolist() == [1, 8]


@pytest.mark.parametrize("spec", [None, 1, "dog", [0, 1]], ids=["none", "int", "name", "list"])
@pytest.mark.parametrize("names", [NAMES[:2], [*NAMES, "cow"], {k: str(k) for k in range(4)} | {1: "dog"}], ids=len)
def test_a_wrong_number_of_class_names_is_refused(spec, names):
    with pytest.raises(TargetError, match=rf"there are {len(names)} class_names for an output of 3 class\(es\)"):
        as_target(spec, names=names).resolve(OUT)(OUT)


@pytest.mark.parametrize("values", [torch.tensor([3.0, -1.0]), torch.tensor([[3.0], [-1.0]])], ids=["batch", "column"])
def test_a_value_is_called_by_its_name_and_is_no_class(values):
    assert as_target(None).resolve(values).label == "output"
    assert as_target(None, names=["price"]).resolve(values).label == "price"
    assert as_target(None).resolve(values)(values).tolist() == [3, -1]
    with pytest.raises(TargetError, match="2 class_names for an output of 1"):
        as_target(None, names=["no", "yes"]).resolve(values)


def test_a_name_that_several_classes_have_is_refused():
    names = ["crane", "dog", "crane"]
    with pytest.raises(TargetError, match=r"2 classes have the name 'crane': 0 'crane', 2 'crane'. Give the index"):
        as_target("crane", names=names)
    assert as_target("dog", names=names)(OUT).tolist() == as_target(1)(OUT).tolist()
    assert as_target("cat", names=["Cat", "cat", "dog"])(OUT).tolist() == as_target(1)(OUT).tolist()


def test_lists_in_a_list_are_refused():
    with pytest.raises(TargetError, match="one target for each sample, and this one holds lists"):
        as_target([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.tensor(2.0), "one value for the whole batch.*one score per sample"),
        (torch.ones(2, 3) > 0, "the output is bool.*float"),
        (torch.ones(2, 3, dtype=torch.complex64), "the output is complex64.*abs"),
    ],
)
@pytest.mark.parametrize("spec", [None, 0])
def test_an_output_that_holds_no_score_is_refused(spec, output, said):
    with pytest.raises(TargetError, match=said):
        as_target(spec).resolve(output)(output)


def test_a_contrast_is_read_with_the_names_of_the_lens_that_gets_it():
    names = ["cat", "dog", "cow"]
    output = torch.tensor([[3.0, 1.0, 5.0]])
    bare = contrast("cow", "cat")
    with pytest.raises(TargetError, match="no class names are known"):
        bare(output)
    read = as_target(bare, names=names)
    assert read(output).tolist() == [2.0] and read.label == "cow - cat"
    assert as_target(2 * contrast("cow", 1) + contrast("dog", "cat"), names=names)(output).tolist() == [6.0]
    assert as_target(contrast(None, "cat"), names=names).resolve(output)(output).tolist() == [2.0]
    assert as_target(contrast(2, 0), names=names).label == "cow - cat"
    with pytest.raises(TargetError, match="Closest: cow"):
        as_target(contrast("cwo", "cat"), names=names)
