"""Every data set knows what its classes are called, in the order of the labels, or says that it does not."""

import datasets
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes as TorchvisionCityscapes

from replk_lightning.data import Augmentation, create_data
from replk_lightning.data.ade20k import Ade20k
from replk_lightning.data.cityscapes import Cityscapes
from replk_lightning.data.fashion_mnist import DEBIAN
from replk_lightning.data.multitask import Labelled, MultiTaskData
from replk_lightning.data.scene_masks import labels_of
from replk_lightning.data.scenes import compose
from replk_lightning.data.segmentation import SegmentAugmentation

DIGITS = tuple("0123456789")
LOBES = tuple(f"{count} lobes" for count in range(2, 10))
GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
AUGMENTATION = SegmentAugmentation(crop=(8, 8), resize=(8, 8))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("mnist5k", DIGITS),
        ("generated", None),  # gratings have angles
        ("scenes-objects-smoke", DIGITS),
        ("scenes-masks-smoke", ("background", *DIGITS)),
        ("scenes-solid-objects", LOBES),
        ("scenes-solid-masks", ("background", *LOBES)),
        ("fashion-mnist", GARMENTS),
        ("scenes-garments-objects", GARMENTS),
        ("scenes-garments-masks", ("background", *GARMENTS)),
    ],
)
def test_sets_of_this_package(name, names):
    if set(GARMENTS) <= set(names or ()) and not DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    few = {"image_size": 48, "train_images": 16, "test_images": 8} if name.startswith("scenes") else {"image_size": 28}
    data = create_data(name, **few)
    assert data.class_names == names
    assert names is None or len(names) == data.num_classes


def test_a_digits_pixels_are_of_its_name():
    scenes = compose("test", 48, objects=3, count=20)
    seen = [scene[scene > 0].unique().tolist() for scene in labels_of(scenes)]
    assert all({label - 1 for label in labels} <= set(scenes.classes[n].tolist()) for n, labels in enumerate(seen))


@pytest.mark.parametrize("streaming", [False, True])
def test_sets_of_the_hub_say_their_labels_names(tmp_path, streaming):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["oak", "elm"])})
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (9, 9))] * 2, "label": [1, 0]}, features=features)
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "x")
    data = create_data("hf:x", path=tmp_path / "x", streaming=streaming)
    assert data.class_names == ("oak", "elm")


def test_folders_are_called_as_they_are_at_any_size(tmp_path):
    for name in ("train/b", "train/a ä", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name / "1.png")
    data = create_data(f"imagefolder:{tmp_path}")
    assert data.class_names == data.at_size(8).class_names == ("a ä", "b")


def test_the_official_sets_of_segmentation_have_their_official_names(tmp_path):
    for split in ("training", "validation"):
        for folder, values in (("images", np.zeros((8, 8, 3))), ("annotations", np.ones((8, 8)))):
            (tmp_path / folder / split).mkdir(parents=True)
            Image.fromarray(values.astype(np.uint8)).save(
                tmp_path / folder / split / ("1.jpg" if values.ndim == 3 else "1.png")
            )
    names = Ade20k(tmp_path, augmentation=AUGMENTATION).class_names
    assert (len(names), len(set(names)), names[0], names[7], names[-1]) == (150, 150, "wall", "bed", "flag")
    cities = Cityscapes(tmp_path, AUGMENTATION)
    assert len(cities.names) == 19
    for entry in TorchvisionCityscapes.classes:
        if 0 <= entry.train_id < 19:
            assert cities.names[cities.classes[entry.id]] == entry.name


def test_a_mixture_of_tasks_has_no_single_list():
    mixture = MultiTaskData(
        [Labelled("digit", "mnist5k")], {"digit": "mnist5k"}, in_chans=1, image_size=28, augmentation=Augmentation()
    )
    assert mixture.class_names is None
