"""The one walk over folders: hidden things, links, endings, and what is said of the rest."""

import os
from pathlib import Path

import pytest
from PIL import Image

from replk_lightning.data import DataError, create_data
from replk_lightning.data.folders import walk
from replk_lightning.data.pools import open_pool
from replk_lightning.data.segmentation import SegmentAugmentation
from replk_lightning.measure.shape_bias import find_stimuli
from replk_lightning.predict.command import open_folder


def picture(path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40)).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    for name in ("a/1.png", "a/deep/2.jpg", "b/3.png"):
        picture(tmp_path / "root" / name)
    return tmp_path / "root"


def test_hidden_files_and_folders_are_skipped_at_any_depth_without_a_word(root):
    for name in (
        ".x.png",
        "a/._1.png",
        "a/.ipynb_checkpoints/1.png",
        "b/__MACOSX/3.png",
        "a/@eaDir/1.jpg",
        "a/deep/.git/x/y.png",
    ):
        picture(root / name)
    for name in ("Thumbs.db", "a/desktop.ini", "a/.DS_Store"):
        (root / name).touch()
    found = walk(root)
    assert found.names == ["a/1.png", "a/deep/2.jpg", "b/3.png"]
    assert found.folders == ["a", "b"]


def test_every_format_that_pillow_reads_is_taken_and_the_rest_is_counted_once(root):
    endings = ("gif", "jfif", "avif", "jp2", "tif", "TIFF", "webp", "bmp", "tga", "ico", "ppm", "qoi", "psd", "mpo")
    for ending in endings:
        (root / "b" / f"x.{ending}").touch()
    for name in ("1.heic", "2.heic", "film.mpg", "page.eps", "README", "labels.txt"):
        (root / "b" / name).touch()
    with pytest.warns(UserWarning, match="left out") as caught:
        found = walk(root)
    assert {Path(name).suffix[1:] for name in found.names if "x." in name} == set(endings)
    (warning,) = caught
    assert str(warning.message) == (
        f"{root}: left out 1 without an ending, 1 named *.eps, 2 named *.heic, 1 named *.mpg, 1 named *.txt."
    )


def test_a_format_that_a_plugin_registers_is_taken(root, monkeypatch):
    (root / "a" / "1.heic").touch()
    Image.init()
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    assert "a/1.heic" in walk(root).names


def test_links_are_followed_and_each_real_folder_is_walked_once(root, tmp_path):
    picture(tmp_path / "elsewhere/deep/4.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a/5.png").symlink_to(tmp_path / "elsewhere/deep/4.png")
    for name, target in (("a/self", "a"), ("a/deep/up", "."), ("b/out", ".."), ("loop", "loop")):
        (root / name).symlink_to(root / target)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path)
    (root / "loop").unlink()
    assert walk(root).names == ["a/1.png", "a/5.png", "a/deep/2.jpg", "b/3.png", "c/deep/4.png"]
    assert walk(root).reached == [root.resolve(), (tmp_path / "elsewhere").resolve()]


def test_a_folder_is_found_where_it_lies_and_a_second_link_to_it_is_named(root, tmp_path):
    picture(tmp_path / "elsewhere/4.png")
    (root / "0").symlink_to(root / "b")  # before what it leads to
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "d").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="left out the link 0, whose folder is there already, the link d, whose"):
        found = walk(root)
    assert found.names == ["a/1.png", "a/deep/2.jpg", "b/3.png", "c/4.png"]
    assert found.folders == ["a", "b", "c"]


def test_a_folder_that_may_not_be_read_is_named(root, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if os.fspath(path).endswith("deep"):
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr("os.scandir", closed)
    with pytest.warns(UserWarning, match="left out the folder a/deep, which may not be read"):
        assert walk(root).names == ["a/1.png", "b/3.png"]


def littered(folder: Path) -> None:
    """What file managers, notebooks and links leave in a folder of pictures."""
    example = next(path for path in folder.iterdir() if path.is_file())
    (folder / f"._{example.name}").write_bytes(b"\0\5\x16\7")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / example.name).write_bytes(example.read_bytes())
    (folder / "itself").symlink_to(folder)


def test_all_that_reads_folders_walks_alike(tmp_path):
    folder = tmp_path / "pictures"
    picture(folder / "x.gif")
    picture(folder / "cat7-dog1.png")
    littered(folder)
    assert open_pool(str(folder)).samples.names.tolist() == [b"cat7-dog1.png", b"x.gif"]
    assert len(open_folder(folder, tmp_path / "out")) == 2
    (folder / "x.gif").unlink()
    assert len(find_stimuli(folder)) == 1


def test_predict_looks_into_linked_folders_and_does_not_write_there(root, tmp_path):
    picture(tmp_path / "elsewhere/4.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    assert len(open_folder(root, tmp_path / "out")) == 4
    with pytest.raises(DataError, match="name another --out"):
        open_folder(root, tmp_path / "elsewhere/out")


def test_litter_is_no_class_and_no_picture_of_any_data_set(tmp_path):
    augmentation = SegmentAugmentation(crop=(16, 24), resize=(40, 40))
    for split in ("training", "validation"):
        picture(tmp_path / f"ade/images/{split}/1.jpg")
        littered(tmp_path / f"ade/images/{split}")
        picture(tmp_path / f"ade/annotations/{split}/1.png")
    for split in ("train", "val"):
        city = tmp_path / f"cities/leftImg8bit/{split}/ulm"
        picture(city / "ulm_1_leftImg8bit.png")
        littered(city)
        picture(tmp_path / f"cities/gtFine/{split}/ulm/ulm_1_gtFine_labelIds.png")
        for name in "ab":
            picture(tmp_path / f"folder/{split}/{name}/1.png")
            littered(tmp_path / f"folder/{split}/{name}")
        (tmp_path / f"folder/{split}/c").symlink_to(tmp_path / f"folder/{split}")
    for name in ("ade20k:ade", "cityscapes:cities"):
        kind, _, where = name.partition(":")
        assert create_data(f"{kind}:{tmp_path / where}", augmentation=augmentation, num_workers=0).train_size == 1
    data = create_data(f"imagefolder:{tmp_path / 'folder'}", num_workers=0)
    assert (data.class_names, data.train_size) == (("a", "b"), 2)


def test_the_order_of_pictures_is_by_class_then_folder_then_name(tmp_path):
    for split in ("train", "val"):
        for name in ("a/z.png", "a/k/1.png", "a-b/1.png", "a/k-2/1.png"):
            picture(tmp_path / split / name)
    train = create_data(f"imagefolder:{tmp_path}", num_workers=0).splits.train.samples
    assert train.names.tolist() == [b"a/z.png", b"a/k/1.png", b"a/k-2/1.png", b"a-b/1.png"]
    assert train.labels.tolist() == [0, 0, 0, 1]
