import inspect

import pytest

from replk_lightning import recipes
from replk_lightning.recipes import RECIPES, DetectRecipe, RecipeError, SegmentRecipe, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_after_its_function_and_cites_the_paper(name):
    assert get_recipe(name).name == name
    source = inspect.getsource(RECIPES[name])
    homes = {DetectRecipe: "(Sec. 4.5)", SegmentRecipe: "(Sec. "}
    assert homes.get(type(get_recipe(name)), "Appendix A") in source
    assert "# paper:" in source


def test_batch_sizes_are_gpus_times_images_per_gpu():
    # Appendix A: 8 × 32, 32 × 64, 32 × 32, 128 × 32, 16 × 32, 32 × 16
    totals = {name: get_recipe(name).batch_size for name in RECIPES}
    assert totals["mobilenetv2_100ep"] == 256
    assert totals["replknet_120ep"] == totals["xl_semi_supervised"] == 2048
    assert totals["replknet_finetune_384"] == 1024
    assert totals["replknet_pretrain_22k"] == 4096
    assert totals["replknet_22k_finetune_224"] == totals["replknet_22k_finetune_384"] == 512
    for name in RECIPES:
        assert get_recipe(name).batch_size % get_recipe(name).gpus == 0


def test_fine_tuning_never_mixes_images():
    for name in RECIPES:
        if "finetune" in name:
            assert get_recipe(name).mixup == get_recipe(name).cutmix == 0


def test_the_learning_rate_is_linear_in_the_total_batch():
    recipe = recipes.mobilenetv2_100ep()
    assert recipe.scaled_lr(256) == recipe.lr
    assert recipe.scaled_lr(64) == pytest.approx(0.025)


def test_unknown_names_are_told_with_the_choices():
    with pytest.raises(ValueError, match=r"no recipe 'resnet'.*mobilenetv2_100ep"):
        get_recipe("resnet")
    with pytest.raises(ValueError, match="no field speed"):
        get_recipe("replknet_120ep", speed=1)


def test_detection_has_the_releases_schedules():
    fcos, cascade = recipes.fcos_2x(), recipes.cascade_mask_rcnn_3x()
    assert (fcos.epochs, fcos.lr, fcos.milestones, fcos.train_sizes) == (24, 2e-4, (16, 22), (640, 800))
    assert (cascade.epochs, cascade.lr, cascade.milestones) == (36, 4e-4, (27, 33))
    assert (cascade.train_sizes[0], cascade.train_sizes[-1], len(cascade.train_sizes)) == (480, 800, 11)
    drop_paths = {name: get_recipe(name).drop_path for name in RECIPES if "cascade" in name}
    assert list(drop_paths.values()) == [0.6, 0.4, 0.7, 0.5]  # B after 1K, B after 22K, L, XL


def test_22k_follows_the_release_where_the_paper_is_silent():
    pretrain, at_224, at_384 = (
        get_recipe(f"replknet_{name}") for name in ("pretrain_22k", "22k_finetune_224", "22k_finetune_384")
    )
    assert (pretrain.warmup_epochs, pretrain.ema, pretrain.min_lr) == (5, None, 1e-6)
    assert (at_224.min_lr, at_384.min_lr) == (1e-6, 3e-4)
    assert at_224.ema == at_384.ema == 1 - 1e-4


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("epochs", "three", "a whole number, not negative"),
        ("epochs", 1.5, "a whole number"),
        ("epochs", True, "a whole number"),
        ("epochs", -1, "a whole number, not negative"),
        ("lr", "x", "a number"),
        ("lr", float("nan"), "a number"),
        ("lr", 0, "a number above 0"),
        ("gpus", 0, "a number above 0"),
        ("ema", 2, "a number from 0 to 1"),
        ("optimizer", "adam", "sgd or adamw"),
        ("mean", [0.5, 0.5], "tuple"),
        ("new_head", "no", "bool"),
        ("ema", "x", "a number, not negative or null"),
    ],
)
def test_values_of_another_type_are_told(field, value, wanted):
    with pytest.raises(RecipeError, match=rf"a recipe's {field} cannot be .*: give it {wanted}"):
        get_recipe("replknet_120ep", **{field: value})


def test_values_out_of_json_will_do():
    assert get_recipe("replknet_120ep", mean=[0, 0.5, 1], ema=None, lr=1).mean == [0, 0.5, 1]
    assert get_recipe("fcos_2x", train_sizes=[48, 64]).train_sizes == [48, 64]
    with pytest.raises(RecipeError, match="a batch of 4 is less than an image for each of 8 gpus"):
        get_recipe("mobilenetv2_100ep", batch_size=4)
