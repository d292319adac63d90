"""Photographs in folders: damaged and odd files, transforms, determinism, error sentences."""

import os
import random
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from replk_lightning import recipes
from replk_lightning.data import Augmentation, DataError, augment, create_data, data_for_recipe
from replk_lightning.data.decoding import UnreadableImageError, decode_rgb

GREY_RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (24, 1))


def noise(height=24, width=32, seed=0):
    return np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes, four training and two validation images of each."""
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise(seed=10 * label + i)).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def load(folder, **options):
    return create_data(f"imagefolder:{folder}", **{"image_size": 16, "batch_size": 4, "num_workers": 0} | options)


def epoch(data):
    batches = list(data.train_dataloader())
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_facts_and_batches(folder):
    data = load(folder)
    assert data.name == f"imagefolder-{folder.name}"
    assert (data.num_classes, data.train_size, data.in_chans, data.image_size) == (2, 8, 3, 16)
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        (4, 3, 16, 16),
        torch.float32,
        (4,),
        torch.int64,
    )
    assert torch.cat([labels for _, labels in data.val_dataloader()]).tolist() == [0, 0, 1, 1]
    assert sorted(epoch(data)[1].tolist()) == [0] * 4 + [1] * 4


def test_fingerprint_follows_names_and_sizes_and_not_the_place(folder, tmp_path_factory):
    first = load(folder).fingerprint
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert load(moved).fingerprint == first
    (moved / "val/dog/1.png").rename(moved / "val/dog/2.png")
    assert load(moved).fingerprint != first


def test_names_that_are_no_utf_8_are_read_and_counted_in_the_fingerprint(folder):
    before = load(folder).fingerprint
    os.rename(folder / "train/cat/0.png", os.fsencode(folder / "train/cat") + b"/\xff.png")
    data = load(folder)
    assert len(epoch(data)[1]) == 8
    assert data.fingerprint != before


@pytest.mark.parametrize("num_workers", [0, 1])
def test_seeds_decide_the_epoch(folder, num_workers):
    data = load(folder, num_workers=num_workers, augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1"))
    epochs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        if num_workers == 0:  # workers seed these two from torch's generator
            random.seed(seed)
            np.random.seed(seed)
        epochs.append(epoch(data))
    assert torch.equal(epochs[0][0], epochs[1][0])
    assert not torch.equal(epochs[0][0], epochs[2][0])


def test_restoring_torchs_generator_between_epochs_brings_back_the_next_one(folder):
    data = load(folder, num_workers=1)
    torch.manual_seed(1)
    epoch(data)
    state = torch.get_rng_state()
    second = epoch(data)
    torch.set_rng_state(state)
    assert torch.equal(epoch(data)[0], second[0])


def save_odd_images(directory):
    """A readable image of every mode that ImageNet or a user may bring, by file name."""
    colour = Image.fromarray(noise())
    colour.convert("L").save(directory / "grey.jpg")
    colour.convert("CMYK").save(directory / "cmyk.jpg")
    colour.convert("1").save(directory / "bilevel.png")
    colour.convert("P").save(directory / "palette.png", transparency=b"\x00\x80" * 128)
    colour.convert("RGBA").save(directory / "alpha.png")
    colour.convert("LA").save(directory / "grey-alpha.png")
    Image.fromarray(GREY_RAMP.astype(np.uint16) * 257).save(directory / "sixteen-bit.png")
    Image.fromarray(GREY_RAMP.astype(np.int32) * 257).save(directory / "thirty-two-bit.tif")
    Image.fromarray(noise(1, 1)).save(directory / "one-pixel.png")
    Image.fromarray(noise(1, 90)).save(directory / "one-row.png")


def test_every_colour_mode_becomes_a_finite_tensor(folder):
    save_odd_images(folder / "train/cat")
    save_odd_images(folder / "val/dog")
    data = load(folder, augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25))
    assert data.train_size == 8 + 10
    assert epoch(data)[0].isfinite().all()
    assert sum(images.isfinite().all() * len(images) for images, _ in data.val_dataloader()) == 4 + 10


@pytest.mark.parametrize("policy", ["rand-m10-mstd0-n1-inc1", "v0-mstd0.5", "augmix-m10-w3"])
def test_every_operation_of_timms_policies_runs_to_its_end(policy):
    random.seed(0)
    transform = Augmentation(auto_augment=policy).train_transform(16)
    assert all(transform(Image.fromarray(noise())).isfinite().all() for _ in range(100))


def test_no_bits_are_a_black_image_and_some_are_timms():
    """As every Pillow before 13 had it."""
    image = Image.fromarray(noise())
    assert not np.asarray(augment._posterize(image, 0)).any()
    assert np.array_equal(augment._posterize(image, 3), np.asarray(image) & 0b11100000)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    save_odd_images(tmp_path)
    for name in ("sixteen-bit.png", "thirty-two-bit.tif"):
        decoded = np.asarray(decode_rgb(str(tmp_path / name)))
        assert decoded.shape == (24, 32, 3)
        assert np.array_equal(decoded, np.repeat(GREY_RAMP[..., None], 3, axis=2))


def test_paths_and_bytes_decode_alike_and_garbage_is_told(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(noise()).save(path)
    for content in (str(path), path.read_bytes()):
        assert np.array_equal(np.asarray(decode_rgb(content)), noise())
    for garbage in (b"", b"no image", path.read_bytes()[:200], str(tmp_path / "none.png")):
        with pytest.raises(UnreadableImageError):
            decode_rgb(garbage)


def damage(path):
    path.write_bytes(path.read_bytes()[:200])


def test_a_corrupt_file_of_validation_is_named_once_and_left_out(folder):
    damage(folder / "val/cat/1.png")
    data = load(folder, augmentation=Augmentation(hflip=0))
    with pytest.warns(UserWarning, match=re.escape(str(folder / "val/cat/1.png"))) as caught:
        images, labels = next(iter(data.val_dataloader()))
    assert len(caught) == 1
    list(data.val_dataloader())  # a second warning would be an error here
    assert labels.tolist() == [0, 1, 1]
    assert len(images) == 3


def test_a_corrupt_file_of_training_is_named_once_and_replaced_by_the_next(folder):
    for name in ("cat/1.png", "dog/3.png"):
        damage(folder / "train" / name)
    train = load(folder).splits.train
    with pytest.warns(UserWarning, match="skipped unreadable image .* the next one takes its place") as caught:
        assert [train[n][1] for n in (0, 1, 7)] == [0, 0, 0]  # after the last comes the first
    assert len(caught) == 2
    assert train[1][1] == 0  # a second warning would be an error here


def test_workers_warn_once_over_all_epochs(folder):
    damage(folder / "val/cat/1.png")
    data = load(folder, num_workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the worker inherits it
        list(data.val_dataloader())
    data.num_workers = 0
    list(data.val_dataloader())  # a second warning would be an error here


def test_a_set_without_one_readable_image_is_an_error_and_no_endless_search(folder):
    for path in (folder / "val").rglob("*.png"):
        damage(path)
    with (
        pytest.raises(DataError, match="None of the 4 images for validation can be read"),
        pytest.warns(match="skipped"),
    ):
        list(load(folder).val_dataloader())
    for path in (folder / "train").rglob("*.png"):
        damage(path)
    with pytest.raises(DataError, match="None of the 8 images can be read"), pytest.warns(match="skipped"):
        next(iter(load(folder).train_dataloader()))


def test_default_augmentation_only_crops_and_flips(folder):
    for path in (folder / "train").rglob("*.png"):
        Image.new("RGB", (40, 30), (255, 0, 51)).save(path)
    images, _ = epoch(load(folder, augmentation=Augmentation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))))
    expected = torch.tensor([1.0, -1.0, -0.6])[:, None, None].expand_as(images)
    assert torch.allclose(images, expected)


def test_flips_and_crops_change_the_picture_and_erasing_and_jitter_do_when_asked(folder):
    picture = Image.fromarray(noise(64, 64))
    seen = {Augmentation().train_transform(16)(picture).sum().item() for _ in range(8)}
    assert len(seen) == 8
    flat = Image.new("RGB", (40, 30), (100, 150, 200))
    plain = Augmentation().eval_transform(16)(flat)
    assert torch.allclose(Augmentation().train_transform(16)(flat), plain)
    assert not torch.allclose(Augmentation(random_erasing=1.0).train_transform(16)(flat), plain)
    assert not torch.allclose(Augmentation(color_jitter=0.4).train_transform(16)(flat), plain)


@pytest.mark.parametrize("size", [224, 384])
def test_evaluation_crops_below_384_pixels_and_resizes_from_there(size):
    picture = Image.fromarray(noise(500, 600))
    if size < 384:
        resized = TF.center_crop(TF.resize(picture, int(size / 0.875)), [size, size])
    else:
        resized = TF.resize(picture, [size, size])
    expected = TF.normalize(TF.to_tensor(resized), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.equal(Augmentation().eval_transform(size)(picture), expected)


def test_other_names_of_the_validation_folder(folder):
    first = load(folder).fingerprint
    for name in ("validation", "test"):
        next(path for path in folder.iterdir() if path.name != "train").rename(folder / name)
        assert load(folder).fingerprint == first


def test_hidden_folders_and_other_files_are_not_data(folder):
    (folder / "train/.cache").mkdir()
    (folder / "train/__MACOSX").mkdir()
    assert (load(folder).num_classes, load(folder).train_size) == (2, 8)
    (folder / "train/readme.txt").write_text("hello")
    (folder / "train/cat/notes.txt").write_text("hello")
    Image.fromarray(noise()).save(folder / "train/apart.png")
    data = load(folder)
    with pytest.warns(UserWarning, match="left out") as caught:
        data.setup()
    assert (data.class_names, data.train_size) == (("cat", "dog"), 8)
    named = [str(warning.message) for warning in caught]
    assert named == [
        f"{folder / 'train'}: left out 2 named *.txt.",
        f"{folder / 'train'}: left out 1 pictures that lie in no class's folder.",
    ]


def test_a_class_without_a_picture_to_train_on_is_named(folder):
    (folder / "train/eel").mkdir()
    with pytest.warns(UserWarning, match="train: no picture of 1 classes, as 'eel', which cannot be learned"):
        assert load(folder).class_names == ("cat", "dog", "eel")


def remove(path):
    for child in path.iterdir():
        remove(child) if child.is_dir() else child.unlink()
    path.rmdir()


def flatten(path):
    for child in list(path.rglob("*.png")):
        child.rename(path / f"{child.parent.name}-{child.name}")
    for child in [child for child in path.iterdir() if child.is_dir()]:
        child.rmdir()


def empty(path):
    for child in list(path.rglob("*.png")):
        child.unlink()


@pytest.mark.parametrize(
    ("change", "where", "sentence"),
    [
        (remove, "", r"There is no folder .*: put images into .*train.CLASS"),
        (remove, "train", r"lacks the folder 'train': put images into .*train.CLASS, one folder a class\."),
        (remove, "val", r"lacks the folder 'val': put images into .*val.CLASS"),
        (flatten, "val", r"val holds no class folders: put images into .*val.CLASS"),
        (empty, "train", r"train holds no image: put files such as .*cat.1\.jpg there\."),
        (empty, "val", r"val holds no image"),
        (remove, "train/dog", r"val holds the class 'dog' that .*train lacks; both need the same class folders\."),
    ],
)
def test_a_folder_that_is_not_as_it_should_be_gets_one_sentence(folder, change, where, sentence):
    change(folder / where)
    with pytest.raises(DataError, match=sentence) as caught:
        load(folder).setup()
    assert "\n" not in str(caught.value)


def test_a_missing_path_is_told_how_to_write_it():
    with pytest.raises(DataError, match="write imagefolder:ROOT"):
        create_data("imagefolder")
    with pytest.raises(DataError, match="write hf:DATASET"):
        create_data("hf:")
    with pytest.raises(DataError, match="No data set is called 'mnist5k:x'"):
        create_data("mnist5k:x")


def test_a_recipe_gives_resolution_batch_size_and_augmentation(folder):
    recipe = recipes.replknet_120ep()
    data = data_for_recipe(f"imagefolder:{folder}", recipe)
    assert (data.image_size, data.batch_size) == (224, 64)
    assert data.augmentation == Augmentation(
        auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25, interpolation="bicubic"
    )
    assert data_for_recipe(f"imagefolder:{folder}", recipes.mobilenetv2_100ep()).augmentation == Augmentation()
    small = data_for_recipe("mnist5k", recipe, image_size=28, batch_size=7)
    assert (small.image_size, small.batch_size) == (28, 7)
