import io
import json
import os
import struct
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from replk_lightning.data import DataError
from replk_lightning.data.coco import Coco
from replk_lightning.data.decoding import COMMON, UnreadableImageError, decode_rgb
from replk_lightning.data.imagefolder import ImageFolder
from replk_lightning.data.segmentation import Labelled, LabelledImages, decode_label

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def encoded(kind="PNG", size=(8, 6), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


def png_of(width, height, data=b""):
    """A PNG that says it is that large and holds little."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def text_bomb():
    """A PNG with a small comment of 100 MB."""
    comment = b"Comment\0\0" + zlib.compress(bytes(100_000_000))
    chunk = struct.pack(">I", len(comment)) + b"zTXt" + comment + struct.pack(">I", zlib.crc32(b"zTXt" + comment))
    content = encoded()
    return content[:33] + chunk + content[33:]


HOSTILE = {
    "bomb": png_of(60_000, 60_000),
    "warned_of": png_of(10_000, 10_000),
    "line": png_of(60_000, 1, bytes(180_001)),
    "text_bomb": text_bomb(),
    "truncated": encoded("JPEG", (64, 64))[:-200],
    "empty": b"",
    "html": b"<!doctype html><title>404</title>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_unreadable_and_takes_no_memory(name):
    with pytest.raises(UnreadableImageError):
        decode_rgb(HOSTILE[name])
    with pytest.raises(UnreadableImageError):
        decode_label(HOSTILE[name])


def test_the_image_that_the_hostile_ones_are_made_of_is_readable():
    assert decode_rgb(png_of(8, 6, bytes(6 * 25))).size == (8, 6)
    assert decode_rgb(encoded("JPEG", (800, 8))).size == (800, 8)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImageError, match="not a file"):
        decode_rgb(str(tmp_path / "pipe.jpg"))
    with pytest.raises(UnreadableImageError):
        decode_rgb(str(tmp_path / "nothing.jpg"))


@FEW
@given(st.data())
def test_damage_of_any_kind_is_an_unreadable_image_or_an_image(data):
    content = bytearray(encoded(data.draw(st.sampled_from(COMMON))))
    assert decode_rgb(bytes(content)).size == (8, 6)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow says of some damage that it could be read all the same
            with suppress(UnreadableImageError):
                assert decode_rgb(damaged).mode == "RGB"


def folder_of(root, files):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            (root / split / name / "good.png").write_bytes(encoded(size=(40, 40)))
    for name, content in files.items():
        (root / "train" / "a" / f"{name}.jpg").write_bytes(content)
    os.mkfifo(root / "train" / "b" / "pipe.jpg")
    return root


def test_a_folder_of_hostile_images_trains_on_the_good_ones_and_names_the_others(tmp_path):
    data = ImageFolder(folder_of(tmp_path, HOSTILE), image_size=16, batch_size=1, num_workers=0)
    with pytest.warns(UserWarning, match="skipped unreadable image") as caught:
        images = torch.cat([images for images, _ in data.train_dataloader()])
    assert images.shape == (11, 3, 16, 16)
    named = " ".join(str(warning.message) for warning in caught)
    assert all(f"{name}.jpg" in named for name in [*HOSTILE, "pipe"])


def test_a_pair_of_hostile_image_or_label_is_replaced(tmp_path):
    good, label = encoded(size=(8, 8)), encoded(size=(8, 8), mode="L")
    pairs = [Labelled(name, content, label) for name, content in HOSTILE.items()]
    pairs += [Labelled(f"label_{name}", good, content) for name, content in HOSTILE.items()]
    pairs += [
        Labelled("colours", good, good),
        Labelled("other_size", good, encoded(mode="L")),
        Labelled("good", good, label),
    ]
    images = LabelledImages(pairs, np.arange(256, dtype=np.uint8), lambda image, label: (image, label), True)
    with pytest.warns(UserWarning, match="skipped unreadable image") as caught:
        assert all(images[n][1].shape == (8, 8) for n in range(len(pairs)))
    assert len({str(warning.message) for warning in caught}) == len(pairs) - 1


SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def coco_of(root, annotations, images=None):
    content = {
        "categories": [{"id": 7}],
        "images": images or [{"id": n, "file_name": f"{n}.png"} for n in range(2)],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 7, "bbox": [1, 1, 4, 4], "segmentation": SQUARE},
            *annotations,
        ],
    }
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        (root / f"{split}2017" / "0.png").write_bytes(encoded(size=(20, 20)))
        (root / f"{split}2017" / "1.png").write_bytes(encoded(size=(20, 20)))
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return Coco(root, num_workers=0)


ANNOTATION = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4], "segmentation": SQUARE, "iscrowd": 0}


@pytest.mark.parametrize(
    "changed",
    [
        {"bbox": []}, {"bbox": [1, 1, 4]}, {"bbox": "1234"}, {"bbox": [1, 1, "4", 4]}, {"bbox": [1, 1, 1e999, 4]},
        {"bbox": None},
        {"category_id": 8}, {"category_id": []}, {"image_id": {}}, {"iscrowd": "x"}, {"iscrowd": None},
    ],
)  # fmt: skip
def test_hostile_annotations_are_one_sentence(tmp_path, changed):
    unlisted = changed == {"category_id": 8}
    with pytest.raises(DataError, match="8, which is not listed" if unlisted else "is not COCO's format"):
        coco_of(tmp_path, [ANNOTATION | changed]).setup()


def test_annotations_that_are_not_of_the_format_are_one_sentence(tmp_path):
    for content in (
        "[]",
        "3",
        '"x"',
        "{}",
        "null",
        "[" * 100_000,
        '{"categories": [1], "images": 1, "annotations": []}',
    ):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        root.mkdir()
        data = coco_of(root, [])
        (root / "annotations" / "instances_train2017.json").write_text(content)
        with pytest.raises(DataError, match="instances_train2017"):
            data.setup()


@pytest.mark.parametrize(
    "shape",
    [
        3, "x", {"counts": [400], "size": "x"}, {"counts": "no runs", "size": [20, 20]}, [["a"] * 6],
        {"counts": [1] * 9, "size": [20, 20]}, {"counts": [4_000_000_000], "size": [20, 20]},
        {"counts": [-5, 405], "size": [20, 20]},
        {"counts": "\x7f" * 50, "size": [20, 20]}, {"counts": [400], "size": [20_000, 20_000]},
    ],
)  # fmt: skip
def test_a_mask_that_cannot_be_drawn_leaves_its_picture_out(tmp_path, shape):
    data = coco_of(tmp_path, [ANNOTATION | {"segmentation": shape}])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ((images, targets),) = data.val_dataloader()
    assert [image.shape[-2:] for image in images] == [(20, 20)]
    assert targets[0]["masks"].shape == (1, 20, 20)
