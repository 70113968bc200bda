import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from layerlens import Lens
from layerlens.errors import InputError
from layerlens.inputs.batches import Data
from layerlens.inputs.transforms import without_label


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, pixel_values):
        return self.head(self.conv(pixel_values).relu().mean(dim=(2, 3)))


def net():
    torch.manual_seed(0)
    return Net()


def pictures(count=3):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)) for _ in range(count)]


def to_tensor(picture):
    return torch.from_numpy(np.array(picture.resize((16, 12)))).permute(2, 0, 1) / 255


EXPECTED = torch.stack([to_tensor(picture) for picture in pictures()])


def test_a_picture_is_transformed_and_gets_the_batch_axis():
    lens, (picture, *_) = Lens(net(), transform=to_tensor), pictures()
    given = lens.inputs(picture)
    assert torch.equal(given.args[0], EXPECTED[:1])
    found = lens.saliency(picture, target=0, method="gradient")
    assert torch.equal(found.tensor, Lens(lens.model).saliency(EXPECTED[:1], target=0, method="gradient").tensor)


@pytest.mark.parametrize(
    "given",
    [
        pictures(),
        tuple(pictures()),
        [np.asarray(picture) for picture in pictures()],
        np.stack([np.asarray(picture) for picture in pictures()]),
        {"image": pictures(), "label": [0, 1, 0]},
    ],
    ids=["list", "tuple", "list of bytes", "bytes", "rows"],
)
def test_several_pictures_are_a_batch(given):
    assert torch.equal(Lens(net(), transform=to_tensor).inputs(given).args[0], EXPECTED)


def test_one_row_of_a_data_set_is_its_picture():
    row = {"image": pictures()[0], "label": 3}
    assert torch.equal(Lens(net(), transform=to_tensor).inputs(row).args[0], EXPECTED[:1])


def test_a_transform_may_add_the_batch_axis_itself():
    lens = Lens(net(), transform=lambda picture: to_tensor(picture).unsqueeze(0))
    assert torch.equal(lens.inputs(pictures()).args[0], EXPECTED)


def test_what_is_a_tensor_is_not_transformed():
    lens = Lens(net(), transform=lambda picture: 1 / 0)
    assert lens.inputs(EXPECTED).args[0] is EXPECTED


def test_floats_are_of_the_dtype_of_the_model():
    assert Lens(net().double(), transform=to_tensor).inputs(pictures()).args[0].dtype == torch.float64


def test_a_file_is_a_picture(tmp_path):
    pictures()[0].save(tmp_path / "one.png")
    assert torch.equal(Lens(net(), transform=to_tensor).inputs(tmp_path / "one.png").args[0], EXPECTED[:1])


def test_a_processor_is_known_by_its_parameters():
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 12, "width": 16})
    given = Lens(net(), transform=processor).inputs(pictures())
    assert torch.equal(given.kwargs["pixel_values"], processor(images=pictures(), return_tensors="pt")["pixel_values"])
    assert Lens(net(), transform=processor).saliency(pictures()[0], target=0, method="gradient").tensor.shape[0] == 1


def test_a_processor_of_texts_and_pictures_gets_both():
    def process(images, text, return_tensors):
        return {"pixel_values": EXPECTED[: len(images)], "ids": torch.tensor([[len(text)]])}

    given = Lens(net(), transform=process).inputs({"images": pictures(1), "text": "four"})
    assert torch.equal(given.kwargs["pixel_values"], EXPECTED[:1]) and given.kwargs["ids"].item() == 4


def test_a_picture_without_a_transform_is_refused():
    for given in (pictures()[0], pictures(), {"image": pictures()[0], "label": 1}):
        with pytest.raises(InputError, match=r"RGB, 30 x 20\) needs the transform .*Lens\(model, transform=...\)"):
            Lens(net()).saliency(given)


@pytest.mark.parametrize(
    ("transform", "given", "said"),
    [
        (lambda picture: 1 / 0, pictures(), "the transform failed on a picture.*ZeroDivisionError"),
        (lambda picture: "text", pictures(), "the transform returned str; it must return a tensor"),
        (lambda picture: torch.zeros(3, 8, picture.size[0]), [pictures()[0], pictures()[0].resize((9, 9))], "differ"),
        (to_tensor, {"left": pictures()[0], "right": pictures()[1]}, "several pictures, left, right"),
        (lambda table: table[:1], np.zeros((2, 3)), "made 1 samples of 2; arrays and tables are transformed whole"),
    ],
)
def test_what_a_transform_cannot_do_is_said(transform, given, said):
    with pytest.raises(InputError, match=said):
        Lens(net(), transform=transform).inputs(given)


def test_a_list_of_equal_samples_is_a_batch():
    for samples in (list(EXPECTED), [one.numpy() for one in EXPECTED]):
        assert torch.equal(Lens(net()).inputs(samples).args[0], EXPECTED)
    with pytest.raises(InputError, match="samples of the list differ in shape"):
        Lens(net()).inputs([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)])


def test_a_list_is_several_arguments_where_the_model_takes_them():
    given = Lens(nn.Bilinear(2, 3, 1)).inputs([torch.zeros(1, 2), torch.zeros(1, 3)])
    assert len(given.args) == 2


def test_rows_of_a_data_set_have_labels():
    rows = [{"image": picture, "label": number} for number, picture in enumerate(pictures())]
    (batch,) = Data(rows, read=Lens(net(), transform=to_tensor).inputs).batches()
    assert torch.equal(batch.inputs.args[0], EXPECTED) and batch.labels == [0, 1, 2]


def test_rows_of_texts_are_read_by_the_tokenizer():
    def tokenizer(texts, return_tensors, padding=False):
        return {"ids": torch.tensor([[len(text)] for text in texts])}

    class Reader(nn.Module):
        def forward(self, ids):
            return ids.float()

    lens = Lens(Reader(), tokenizer=tokenizer)
    assert lens.inputs({"text": "four", "label": 1}).kwargs["ids"].tolist() == [[4]]
    rows = [{"text": "four", "label": 1}, {"text": "three", "label": 0}]
    (batch,) = Data(rows, read=lens.inputs).batches()
    assert batch.inputs.kwargs["ids"].tolist() == [[4], [5]] and batch.labels == [1, 0]


def test_a_dict_that_holds_tensors_is_no_row():
    for given in (
        {"images": [EXPECTED[0]], "labels": 3},
        {"x": EXPECTED, "label": 3},
        {"x": {"y": EXPECTED}, "label": 3},
    ):
        assert without_label(given)[0] is given
