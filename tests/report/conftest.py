"""Reports of a small image model, made once."""

import pytest

from layerlens import Lens
from layerlens.demo.embedded import CLASS_NAMES, load_digit_net, sample_pictures

HOSTILE = '<script>alert("x")</script> & "seven"'


@pytest.fixture(scope="session")
def digits():
    return Lens(load_digit_net(), class_names=CLASS_NAMES), sample_pictures()[0][[7, 3]]


@pytest.fixture(scope="session")
def made(digits, tmp_path_factory):
    """The path of a page of two pictures, one with a hostile name."""
    lens, images = digits
    path = tmp_path_factory.mktemp("report") / "report.html"
    return lens.report(
        images, ["seven", None], path, labels=[HOSTILE, "three"], title=HOSTILE, layers="blocks.*",
        methods={"integrated_gradients": {"steps": 20}},
    )  # fmt: skip
