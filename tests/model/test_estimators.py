import numpy as np
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from layerlens import Lens
from layerlens.errors import InputError

IRIS = load_iris(as_frame=True)
KINDS = np.array(IRIS.target)
FEW = IRIS.data.iloc[[3, 77, 140]]
TO_FLOAT = FunctionTransformer(lambda x: np.asarray(x, dtype=np.float32), feature_names_out="one-to-one")


def classifier(columns=4):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(columns, 8), nn.ReLU(), nn.Linear(8, 3))
    return NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, max_epochs=10, lr=0.1, train_split=None, verbose=0
    )


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(StandardScaler(), TO_FLOAT, classifier()).fit(IRIS.data, KINDS)


def test_the_net_of_a_classifier_is_found():
    net = classifier().fit(np.array(IRIS.data, dtype=np.float32), KINDS)
    assert Lens(net).model is net.module_
    found = Lens(net).saliency(FEW, target=0, method="kernel_shap")
    assert found.to_frame().shape == (3, 4) and list(found.to_frame().columns) == list(FEW.columns)


def test_the_steps_before_the_net_are_applied(pipeline):
    lens = Lens(pipeline)
    found = lens.saliency(FEW, target=0, method="gradient")
    scaled = torch.from_numpy(np.asarray(pipeline[:-1].transform(FEW)))
    expected = Lens(pipeline[-1].module_).saliency(scaled, target=0, method="gradient")
    assert torch.equal(found.tensor, expected.tensor) and torch.equal(found.inputs, scaled)
    assert found.features == {"0": tuple(FEW.columns)} and found.index == (3, 77, 140)
    assert torch.equal(lens.inputs(scaled).args[0], scaled)  # a tensor is what the net takes
    assert torch.equal(lens.inputs(FEW.iloc[0]).args[0], scaled[:1])


def test_classes_have_their_names(pipeline):
    assert Lens(pipeline).class_names is None  # they are numbers
    named = classifier()
    named.set_params(classes=list(IRIS.target_names))
    assert Lens(named.initialize()).class_names == ["setosa", "versicolor", "virginica"]
    assert Lens(named, class_names=["a", "b", "c"]).class_names == ["a", "b", "c"]


def test_encoded_columns_have_the_names_of_the_encoder():
    table = FEW.assign(garden=["north", "south", "north"])
    encoder = make_column_transformer((OneHotEncoder(), ["garden"]), remainder="passthrough")
    pipe = make_pipeline(encoder, TO_FLOAT, classifier(6)).fit(table, np.array([0, 1, 2]))
    found = Lens(pipe).saliency(table, target=0, method="gradient")
    assert found.features["0"] == tuple(pipe[0].get_feature_names_out())


def test_the_best_of_a_search_is_taken():
    search = GridSearchCV(make_pipeline(TO_FLOAT, classifier()), {"neuralnetclassifier__lr": [0.1, 0.2]}, cv=2)
    search.fit(IRIS.data, KINDS)
    assert Lens(search).model is search.best_estimator_[-1].module_


def test_a_fitted_transformer_is_a_transform():
    scaler = StandardScaler().set_output(transform="pandas").fit(IRIS.data)
    lens = Lens(nn.Linear(4, 3), transform=scaler)
    found = lens.saliency(FEW, target=0, method="gradient")
    assert torch.allclose(found.inputs, torch.tensor(scaler.transform(FEW).to_numpy(np.float32)))
    assert list(found.to_frame().columns) == list(FEW.columns)


def test_what_cannot_be_read_is_refused(pipeline):
    with pytest.raises(InputError, match="has no model yet: fit it"):
        Lens(classifier())
    with pytest.raises(InputError, match="has its own steps before the net"):
        Lens(pipeline, transform=TO_FLOAT)
    with pytest.raises(InputError, match="got StandardScaler"):
        Lens(StandardScaler())
