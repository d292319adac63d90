from types import SimpleNamespace

import pytest
import timm
import timm_suite


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(timm, "list_models", timm.list_models)
    config = SimpleNamespace(
        deselected=[], addinivalue_line=lambda *_: None, getoption={"models": "replknet_[37]"}.__getitem__
    )
    config.hook = SimpleNamespace(pytest_deselected=lambda items: config.deselected.extend(items))
    timm_suite.pytest_configure(config)
    return config


def test_timms_lists_name_our_models_whatever_files_they_choose(config):
    assert timm.list_models() == timm.list_models(module=["resnet", "convnext"]) == ["replknet_3", "replknet_7"]
    assert timm.list_models("*_7", include_tags=True) == ["replknet_7.untrained"]
    assert timm.list_models(exclude_filters=["*_3"], name_matches_cfg=True) == ["replknet_7"]
    assert timm.list_models(pretrained=True) == timm.list_models("resnet*") == []


def test_only_checks_of_our_models_are_left_and_scripting_is_skipped(config):
    def item(name, **params):
        marks = []
        return SimpleNamespace(name=name, callspec=SimpleNamespace(params=params), add_marker=marks.append, marks=marks)

    ours, scripted = item("test_forward", model_name="replknet_3"), item("test_torchscript", model_name="replknet_7")
    others = [item("test_swin", model_name="swin_tiny"), item("test_layer", size=3), SimpleNamespace(name="test_plain")]
    items = [ours, *others, scripted]
    timm_suite.pytest_collection_modifyitems(config, items)
    assert items == [ours, scripted]
    assert config.deselected == others
    assert ours.marks == []
    assert "TorchScript" in scripted.marks[0].args[0]
