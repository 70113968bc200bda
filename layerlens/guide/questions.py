"""The questions that a lens answers, as a table: each with its call, its cost and what it needs."""

from __future__ import annotations

import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        ask: the question.
        call: its call; `{target}`, `{class}`, `{classes}`, `{layer}`, `{blocks}` and `{recurrent}` are filled in.
        cost: cost per sample, as `Method.passes` writes it; "in all" if it is for all samples together.
        needs: what the model or the input must have, see `facts.NEEDS`.
        given: what the caller must have besides `x`, in words; its time is unknown.
    """

    ask: str
    call: str
    cost: str
    needs: tuple[str, ...] = ()
    given: str = ""


QUESTIONS: Final[tuple[Question, ...]] = (
    # what the layers hold
    Question("What is in this model?", "lens.layers(x)", "2 forward passes"),
    Question("What did each layer return?", "lens.capture(x)", "1 forward pass"),
    Question("What is between the layers?", "lens.functions(x, {layer})", "1 forward pass"),
    Question("Which layers did each sample pass?", "lens.route(x)", "1 forward pass"),
    Question("Where do two inputs part?", "lens.compare_routes(x, other)", "2 forward passes", given="a second input"),
    Question(
        "What comes out without a unit of a layer?",
        "lens.run(x, edits={{{layer}: layerlens.edits.zero(units=0)}})",
        "1 forward pass",
    ),
    Question(
        "Which words, steps and layers made this sampled picture?",
        "lens.explain_sampling(inputs, loop=sample)",
        "2 forward passes and 1 relevance in each step",
        ("a denoiser",),
        given="a sampling loop",
    ),
    Question("What drives the units of a layer?", "lens.activation_maps(x, {layer})", "3 forward passes", ("places",)),
    Question(
        "What drives the units of several layers?", "lens.layer_maps(x, [{layer}])", "3 forward passes", ("places",)
    ),
    Question("What can a unit see?", "lens.receptive_field(x, {layer})", "20 gradients", ("a grid", "a gradient")),
    Question(
        "What excites a class most?",
        "lens.feature_visualization({class}, x.shape[1:])",
        "320 gradients in all",
        ("an image", "a gradient", "classes"),
    ),
    Question(
        "Which samples excite a unit most?",
        "lens.top_inputs(data, {layer})",
        "3 gradients a sample",
        ("a gradient",),
        "a data set",
    ),
    Question(
        "What did a recurrent layer hold?",
        "lens.recurrent_states(x, {recurrent})",
        "1 forward pass",
        ("recurrent layers",),
    ),
    Question(
        "What did each step of a written text consider?",
        'lens.generate(prompt, record="logit_lens")',
        "2 forward passes a token",
        (),
        "a tokenizer and a prompt",
    ),
    Question(
        "What changes if a direction is added at a layer?",
        "lens.steer(x, direction, {layer}, target={target})",
        "30 forward passes",
        ("a score",),
        "a direction of the layer's units",
    ),
    Question("Where does each place look?", "lens.attention(x)", "1 forward pass", ("attention",)),
    Question(
        "What do the hidden numbers change in what it makes?",
        "lens.latent_traversal(x)",
        "7 forward passes a feature",
        ("a generator",),
    ),
    # what mattered for the score
    Question("What mattered in the input?", 'lens.saliency(x, target={target}, method="auto")', "auto", ("a score",)),
    Question(
        "Which other methods say so?",
        "lens.saliency.methods(for_input=x, target={target})",
        "10 gradients",
        ("a score",),
    ),
    Question(
        "What mattered in a layer?",
        'lens.saliency(x, target={target}, where={layer}, method="integrated_gradients")',
        "50 gradients or more",
        ("a gradient",),
    ),
    Question(
        "Where did the model look?",
        "lens.grad_cam(x, target={target})",
        "1 gradient",
        ("a layer with places", "a gradient"),
    ),
    Question(
        "Can I believe the map?",
        'lens.evaluate(x, ["gradient", "input_x_gradient"], target={target})',
        "2 gradients, 500 forward passes",
        ("a gradient",),
    ),
    Question(
        "Would another training say the same?",
        'lens.model_uncertainty(x, target={target}, models="dropout", method="input_x_gradient")',
        "20 gradients",
        ("a gradient",),
        "a model with dropout, its training data, or several models",
    ),
    Question(
        "Which part of the context made this answer?",
        "lens.explain_answer(prompt)",
        "12 forward passes",
        (),
        "a tokenizer and a prompt",
    ),
    Question(
        "What would make an explanation mislead here?",
        "lens.check(x, target={target})",
        "100 gradients, 150 forward passes",
        (),
    ),
    Question(
        "At which layer is the gradient wrong?",
        "lens.check_gradient(x, target={target})",
        "10 gradients",
        ("a gradient",),
    ),
    Question("How did the score come about?", "lens.relevance(x, target={target})", "3 gradients", ("a gradient",)),
    Question(
        "Why this and not that?",
        "lens.relevance(x, target=layerlens.contrast({classes}))",
        "3 gradients",
        ("a gradient", "two classes"),
    ),
    Question(
        "Which strokes or sounds made this symbol?",
        "lens.relevance(x, target=layerlens.symbol(0))",
        "3 gradients",
        ("a gradient", "a text read with CTC"),
    ),
    Question(
        "What speaks for each class?",
        "lens.relevance_by_target(x, targets=[{classes}])",
        "4 gradients",
        ("a gradient", "two classes"),
    ),
    Question(
        "Which units of a layer made the score?",
        "lens.rank_concepts(x, {layer}, target={target})",
        "3 gradients",
        ("a gradient",),
    ),
    Question(
        "Where do these units look?",
        "lens.concept_relevance(x[:1], {layer}, target={target})",
        "8 gradients",
        ("a gradient", "places", "one input"),
    ),
    Question(
        "What distinguishes these samples?",
        "lens.compare_groups(data, groups)",
        "5 gradients a sample",
        ("a score",),
        "a data set and a group for each sample",
    ),
    Question(
        "What goes wrong in the errors?",
        "lens.explain_errors(data, labels)",
        "5 gradients a sample",
        ("classes",),
        "a data set and labels",
    ),
    Question(
        "Which features work together?",
        "lens.interactions(x[:1], {target})",
        "4096 forward passes in all",
        ("a score",),
        "shapiq",
    ),
    Question(
        "Does a concept push the score?",
        "lens.tcav(data, concepts, {layer}, random=others, target={target})",
        "1 gradient a sample",
        ("a gradient",),
        "examples of the concept and random ones",
    ),
    Question(
        "Which features of a dictionary made the score?",
        "lens.feature_effects(x, lens.basis(data, {layer}), target={target})",
        "1 gradient",
        ("a gradient",),
        "a data set",
    ),
    Question(
        "Which groups of samples show a concept?",
        "lens.concept_activation(data, concepts, {layer}, random=others, groups=groups)",
        "1 forward pass a sample",
        given="examples of the concept and random ones",
    ),
    # where the score is made
    Question(
        "What does each layer add to the score?",
        "lens.contributions(x, target={target})",
        "3 gradients",
        ("a gradient",),
    ),
    Question(
        "Which layer sends what to which?",
        "lens.attribution_graph(x, target={target})",
        "4 gradients",
        ("a gradient",),
    ),
    Question(
        "Do these parts make the score?",
        "lens.circuit_faithfulness(parts, x, target={target})",
        "100 forward passes",
        ("a score",),
        "parts, such as a graph or a ranking",
    ),
    # which layers, inputs and weights are sensitive
    Question(
        "What does the output lose without a part?",
        "lens.ablate(x, {blocks}, target={target})",
        "3 forward passes a block",
        ("a score",),
    ),
    Question(
        "What does it lose without a head?",
        'lens.ablate(x, by="head", target={target})',
        "10 forward passes a block",
        ("attention", "a score"),
    ),
    Question(
        "Where is the difference between two inputs carried?",
        "lens.patch(x, other, {blocks}, target={target})",
        "1 forward pass a block",
        ("a score",),
        "a second input of the same shape",
    ),
    Question("Which layer is sensitive?", "lens.sensitivity(x)", "10 gradients", ("a gradient",)),
    Question("How much does each layer amplify changes?", "lens.jacobian(x)", "10 gradients", ("a gradient",)),
    Question("How far can a small change carry?", "lens.lipschitz(x)", "30 gradients a layer", ("a gradient",)),
    Question("How far does noise carry?", "lens.noise_response(x)", "24 forward passes a layer"),
    Question("Which weights matter?", "lens.weight_sensitivity(x)", "8 gradients", ("a gradient",)),
    Question(
        "Which features does the score depend on overall?",
        "lens.sobol(x, target={target})",
        "1024 forward passes a feature in all",
        ("a table", "a score", "several samples"),
    ),
    Question(
        "Which features interact, at little cost?",
        "lens.morris(x, target={target})",
        "20 forward passes a feature in all",
        ("a table", "a score", "several samples"),
    ),
    Question(
        "How strong must an attack be?",
        "lens.attack_curve(x, labels)",
        "60 gradients",
        ("classes", "a gradient"),
        "labels",
    ),
    Question(
        "Which small change turns an answer?",
        "lens.attack(x, labels)",
        "60 gradients",
        ("classes", "a gradient"),
        "labels",
    ),
    Question(
        "In which layer does an attack show?",
        "lens.attack_drift(x, labels)",
        "60 gradients",
        ("classes", "a gradient"),
        "labels",
    ),
    Question(
        "How does it take noise, blur and weather?",
        "lens.corruption_curve(x, labels)",
        "400 forward passes",
        ("classes", "an image"),
        "labels",
    ),
    # how layers transform data, and learn
    Question("What would each layer answer?", "lens.logit_lens(x)", "7 forward passes", ("blocks", "two classes")),
    Question("Which layers do the same?", "lens.similarity(data)", "1 forward pass a sample", (), "a data set"),
    Question(
        "How many dimensions does a layer use?", "lens.geometry(data)", "1 forward pass a sample", (), "a data set"
    ),
    Question("Which units are dead or doubled?", "lens.health(data)", "1 forward pass a sample", (), "a data set"),
    Question("Which blocks do little?", "lens.nonlinearity(data)", "1 forward pass a sample", (), "a data set"),
    Question(
        "What can be read from a layer?",
        "lens.linear_probe(data, labels)",
        "2 forward passes a sample",
        (),
        "a data set and labels",
    ),
    Question(
        "Where do training and test data part?",
        "lens.generalization_gap(train, test)",
        "1 forward pass a sample",
        (),
        "two data sets",
    ),
    Question(
        "What did fine-tuning change?",
        "lens.compare(other, data)",
        "3 forward passes a sample",
        (),
        "another model and a data set",
    ),
    Question(
        "How do the layers learn?",
        "with lens.watch(optimizer): ...",
        "about 5 % of the training",
        (),
        "a training loop",
    ),
    Question(
        "Which training samples made this error?",
        "lens.influence(x, labels, training=data)",
        "2 gradients a training sample",
        ("a gradient",),
        "the true labels and the training set",
    ),
    # whole data sets, and pages
    Question(
        "How do I ask this of every sample?",
        'lens.over(data, store="run").saliency()',
        "as the method a sample",
        (),
        "a data set",
    ),
    Question(
        "How do I look around in it with the mouse?",
        "lens.explore(x, targets={target})",
        "5 gradients, 7 forward passes",
        ("a score", "a gradient"),
    ),
    Question(
        "What can I send to someone?",
        'lens.report(x, targets={target}, path="report.html")',
        "auto, 100 gradients, 500 forward passes",
        ("a score",),
    ),
)
"""In the order in which they are printed."""
