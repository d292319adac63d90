"""timm's own checks of models, over this package's: a plugin for pytest, which `nox -s timm_tests` loads."""

from fnmatch import fnmatch

import pytest
import timm

import replk_lightning  # noqa: F401  (registers the models)

SCRIPTING = "the operator is Python, which TorchScript does not compile: export the net"


def pytest_addoption(parser):
    parser.addoption("--models", default="*", help="names of models, * and ? allowed (default: all of this package)")


def pytest_configure(config):
    config.addinivalue_line("markers", "timeout: of a plugin that need not be installed")
    every = timm.list_models

    def own(filter="", module="", *args, **options):
        """timm's lists choose by file too, where this package's models are none of them."""
        return [name for name in every(filter, "", *args, **options) if _is_own(name, config)]

    timm.list_models = own


def pytest_collection_modifyitems(config, items):
    known = [item for item in items if hasattr(item, "callspec") and "model_name" in item.callspec.params]
    own = [item for item in known if _is_own(item.callspec.params["model_name"], config)]
    config.hook.pytest_deselected(items=[item for item in items if item not in own])
    items[:] = own
    for item in items:
        if "torchscript" in item.name:
            item.add_marker(pytest.mark.skip(SCRIPTING))


def _is_own(name, config):
    base = name.partition(".")[0] if isinstance(name, str) else ""  # a list without our names leaves no name at all
    ours = timm.is_model(base) and timm.model_entrypoint(base).__module__.startswith("replk_lightning.")
    return ours and fnmatch(base, config.getoption("models"))
