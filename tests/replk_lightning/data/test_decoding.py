"""Pixels as people saw and labelled them: orientation, wide numbers, colour modes; and what is read in evaluation."""

import struct

import datasets
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from replk_lightning.data import base, samplers
from replk_lightning.data.base import EvaluationLoader, collate_readable
from replk_lightning.data.decoding import (
    UPRIGHT,
    ReadableSamples,
    UnreadableImageError,
    decode,
    decode_rgb,
    upright_size,
)
from replk_lightning.data.hub import HubImages
from replk_lightning.data.imagefolder import ImageFolder
from replk_lightning.data.multitask import HumanTargets, Mixture, Source
from replk_lightning.data.pools import Preparation, open_pool
from replk_lightning.data.samplers import EvaluationShare, counts
from replk_lightning.data.segmentation import Labelled, LabelledImages, decode_label
from replk_lightning.predict.command import decoded

ORIENTATION = 274
STORED = {
    **UPRIGHT,
    6: Image.Transpose.ROTATE_90,  # the two that do not undo themselves
    8: Image.Transpose.ROTATE_270,
}
"""What an upright picture is turned by before it is stored with an orientation."""


def upright() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 255, (24, 16, 3), dtype=np.uint8))


def stored(path, orientation, image=None, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = image or upright()
    turned = image.transpose(STORED[orientation]) if orientation in STORED else image
    turned.save(path, exif=exif, **options)
    return str(path)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("webp", {"lossless": True}), ("tif", {})])
def test_every_orientation_is_set_upright_once(tmp_path, orientation, ending, options):
    path = stored(tmp_path / f"x.{ending}", orientation, **options)
    assert np.array_equal(np.asarray(decode_rgb(path)), np.asarray(upright()))
    assert upright_size(path) == (16, 24)


def test_jpegs_of_phones_and_bytes_are_set_upright(tmp_path):
    path = stored(tmp_path / "x.jpg", 6, quality=100, subsampling=0)
    for image in (decode_rgb(path), decode_rgb((tmp_path / "x.jpg").read_bytes()), decoded(tmp_path / "x.jpg")):
        assert image.size == (16, 24)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(upright())).mean() < 5
    several = tmp_path / "x.mpo"
    second = upright().transpose(Image.Transpose.ROTATE_90)
    second.save(
        several, "MPO", save_all=True, append_images=[second], exif=ImageOps.exif_transpose(Image.open(path)).getexif()
    )
    assert decode_rgb(str(several)).size == (24, 16)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so
def test_damaged_exif_leaves_the_picture_as_it_is_stored(tmp_path):
    path = tmp_path / "x.jpg"
    upright().save(path, exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert decode_rgb(str(path)).size == (16, 24)
    upright().save(path, exif=b"Exif\0\0no header of a TIFF")
    assert decode_rgb(str(path)).size == (16, 24)


def test_masks_are_set_upright_as_their_pictures_are(tmp_path):
    numbers = np.arange(24 * 16, dtype=np.uint16).reshape(24, 16).astype(np.uint8)
    image, label = stored(tmp_path / "x.png", 8), stored(tmp_path / "y.png", 8, Image.fromarray(numbers))
    assert np.array_equal(decode_label(label), numbers)
    palette = Image.fromarray(numbers)
    palette.putpalette(np.random.RandomState(0).randint(0, 255, 768, dtype=np.uint8).tobytes())
    assert np.array_equal(decode_label(stored(tmp_path / "p.png", 5, palette)), numbers)
    pair = LabelledImages([Labelled("x", image, label)], np.arange(256), lambda image, label: (image, label), False)[0]
    assert pair[0].shape[1:] == pair[1].shape == (24, 16)


def tall(tensor):
    """Whether a square view of a picture that darkens from above stands upright."""
    half = tensor.shape[-1] // 2
    return bool(tensor[..., :half, :].mean() > tensor[..., half:, :].mean() + 0.1)


def sky() -> Image.Image:
    return Image.fromarray(np.linspace(255, 0, 40 * 40 * 3).reshape(40, 40, 3).astype(np.uint8))


def test_training_validation_pseudo_labels_and_hub_sets_see_upright_pictures(tmp_path):
    folder = tmp_path / "folder"
    for split in ("train", "val"):
        (folder / split / "a").mkdir(parents=True)
        stored(folder / split / "a" / "1.png", 6, sky())
    content = {"bytes": (folder / "train/a/1.png").read_bytes(), "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_list([{"image": content, "label": 0}], features=features)
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "saved")
    options = {"image_size": 16, "num_workers": 0, "batch_size": 1}
    sets = [
        ImageFolder(folder, **options),
        HubImages("saved", path=tmp_path / "saved", **options),
        HubImages("saved", path=tmp_path / "saved", streaming=True, **options),
    ]
    for data in sets:
        assert tall(next(iter(data.val_dataloader()))[0])
        assert tall(next(iter(data.train_dataloader()))[0])
    view = Preparation(16, ImageFolder(folder).augmentation.eval_transform(16))
    for pool in (open_pool(str(folder)), open_pool(str(tmp_path / "saved"))):
        assert tall(pool.views(0, [view])[0])


RAMP = np.tile(np.arange(0, 256, 5, dtype=np.uint8), (30, 1))


@pytest.mark.parametrize(
    ("ending", "values"),
    [
        ("tif", (RAMP / 255).astype(np.float32)),
        ("tif", RAMP.astype(np.float32)),
        ("tif", RAMP.astype(np.int32)),
        ("tif", RAMP.astype(np.int32) * 257),
        ("tif", RAMP.astype(np.uint16) * 257),
        ("png", RAMP.astype(np.uint16) * 257),
        ("pgm", RAMP.astype(np.uint16) * 257),
        ("pfm", (RAMP / 255).astype(np.float32)),
    ],
)
def test_wide_numbers_are_scaled_to_the_range_that_people_saw(tmp_path, ending, values):
    Image.fromarray(values).save(tmp_path / f"x.{ending}")
    found = np.asarray(decode_rgb(str(tmp_path / f"x.{ending}")))
    assert np.array_equal(found, np.repeat(RAMP[..., None], 3, axis=2))


def tiff_of_12_bits(rows):
    """A grey TIFF of an even number of pixels a row, two in three bytes."""
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
        for row in rows
        for a, b in zip(row[::2], row[1::2], strict=True)
    )
    tags = {
        256: len(rows[0]),
        257: len(rows),
        258: 12,
        259: 1,
        262: 1,
        273: 0,
        277: 1,
        278: len(rows),
        279: len(packed),
    }
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items()
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed


def test_twelve_bits_reach_from_black_to_white():
    found = np.asarray(decode_rgb(tiff_of_12_bits([[0, 4095], [2048, 1024]])))[..., 0]
    assert found.tolist() == [[0, 255], [128, 64]]


def test_tiffs_whose_zero_is_white_are_not_negatives(tmp_path):
    for name, values in (("8", RAMP), ("16", RAMP.astype(np.uint16) * 257)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="miniswhite")
        assert np.array_equal(np.asarray(decode_rgb(str(tmp_path / f"{name}.tif")))[..., 0], 255 - RAMP)


def test_tiffs_of_sixteen_bits_in_planes_are_refused_as_pillow_mixes_them_up(tmp_path):
    for name, dtype in (("8", np.uint8), ("16", np.uint16)):
        planes = np.stack([RAMP.astype(dtype)] * 3)
        tifffile.imwrite(tmp_path / f"{name}.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(np.asarray(decode_rgb(str(tmp_path / "8.tif")))[..., 1], RAMP)
    with pytest.raises(UnreadableImageError, match="a TIFF of 16 bits in separate planes: save it as 8 bits"):
        decode_rgb(str(tmp_path / "16.tif"))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_that_would_be_black_are_refused_and_dark_ones_are_not(tmp_path, ending):
    path = str(tmp_path / f"x.{ending}")
    Image.fromarray(RAMP.astype(np.uint16)).save(path)
    with pytest.raises(UnreadableImageError, match="its values reach 255 of 65535, which is black: save it as 8 bits"):
        decode_rgb(path)
    for factor, largest in ((0, 0), (16, 16)):
        Image.fromarray(RAMP.astype(np.uint16) * factor).save(path)
        assert np.asarray(decode_rgb(path)).max() == largest


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.float32) * 3,
        RAMP.astype(np.float32) / 255 - 0.5,
        np.where(RAMP > 9, np.nan, 0.5).astype(np.float32),
        np.where(RAMP > 9, np.inf, 0.5).astype(np.float32),
        RAMP.astype(np.int32) * 2**23,
        RAMP.astype(np.int32) - 9,
    ],
)
def test_wide_numbers_of_no_known_range_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableImageError, match="no format says what is white: save it as 8 bits"):
        decode_rgb(str(tmp_path / "x.tif"))


def test_the_first_picture_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert decode_rgb(str(tmp_path / "x.gif")).getpixel((3, 3)) == (255, 0, 0)
    assert decode(str(tmp_path / "x.gif")).mode == "P"


def test_colours_of_every_mode_are_kept(tmp_path):
    colour = (200, 40, 90)
    plain = Image.new("RGB", (20, 20), colour)
    plain.convert("RGBA").save(tmp_path / "alpha.png")
    plain.quantize(4).save(tmp_path / "palette.png", transparency=0)
    plain.convert("CMYK").save(tmp_path / "cmyk.tif")
    plain.convert("YCbCr").save(tmp_path / "luminance.tif")
    for path in sorted(tmp_path.iterdir()):
        found = decode_rgb(str(path))
        assert (found.mode, found.size) == ("RGB", (20, 20))
        assert np.allclose(found.getpixel((5, 5)), colour, atol=3), path


class Numbers(ReadableSamples):
    """0, 1, 2, … of which some cannot be read."""

    def __init__(self, count, damaged, train=False):
        super().__init__(count, train)
        self.damaged = damaged

    def name(self, index):
        return str(index)

    def read(self, index):
        if index in self.damaged:
            raise UnreadableImageError("damaged")
        return torch.tensor(index)


class Numbered(base.ImageData):
    """Numbers as a data set."""

    def __init__(self, count, damaged, batch_size, num_workers=0):
        super().__init__("numbers", in_chans=1, image_size=1, batch_size=batch_size, num_workers=num_workers)
        self.numbers = Numbers(count, damaged)

    def load(self):
        return base.Splits(self.numbers, self.numbers, 2, len(self.numbers), str)


@pytest.mark.filterwarnings("ignore:skipped unreadable")
@pytest.mark.parametrize("damaged", [{0}, {3}, {9}, {2, 3}, {0, 1, 8, 9}, set(range(9)), {1, 4, 7}])
@pytest.mark.parametrize(("processes", "batch_size"), [(1, 2), (1, 1), (2, 1), (2, 2), (3, 2)])
def test_each_readable_sample_of_validation_counts_once_in_equally_many_steps(
    damaged, processes, batch_size, monkeypatch
):
    seen, steps = [], set()
    for rank in range(processes):
        for module in (samplers, base):
            monkeypatch.setattr(module, "process", lambda rank=rank: (rank, processes))
        loader = Numbered(10, damaged, batch_size).val_dataloader()
        batches = list(loader)
        steps.add(len(batches))
        seen += [int(n) for number, batch in enumerate(batches) if counts(loader, number) for n in batch]
    assert sorted(seen) == sorted(set(range(10)) - damaged)
    assert len(steps) == 1 or processes == 1


@pytest.mark.filterwarnings("ignore:skipped unreadable")
def test_what_counts_is_known_while_batches_come():
    loader = EvaluationLoader(
        Numbers(6, {1, 2}), 1, sampler=EvaluationShare(6, 1), collate_fn=lambda s: collate_readable(torch.stack, s)
    )
    for _ in range(2):  # a second pass counts anew
        found = [(int(batch), counts(loader, number)) for number, batch in enumerate(loader)]
        assert found == [(0, True), (3, True), (4, True), (5, True)]


@pytest.mark.filterwarnings("ignore:skipped unreadable")
def test_workers_leave_out_alike():
    batches = [batch.tolist() for batch in Numbered(5, {0, 1, 4}, 2, num_workers=1).val_dataloader()]
    assert batches == [[2, 3]]
    assert [batch.tolist() for batch in Numbered(5, {0}, 2).predict_dataloader()] == [[1], [2, 3], [4]]


def test_mixtures_leave_out_what_cannot_be_read():
    class Pairs(Numbers):
        def read(self, index):
            return super().read(index).float()[None], index

    mixture = Mixture([Source(Pairs(3, {1}), HumanTargets("a")), Source(Pairs(1, {0}), HumanTargets("b"))], ["a", "b"])
    with pytest.warns(UserWarning, match="skipped unreadable"):
        images, targets = mixture.__getitems__([3, 2, 1, 0])
    assert images.flatten().tolist() == [2, 0]
    assert targets["a"].classes.flatten().tolist() == [2, 0]
    assert mixture[3] is None
