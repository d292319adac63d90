"""Old names of modules lead to today's for one version."""

import importlib
import sys

import pytest

import native  # noqa: F401  (keeps its old names)
import replk_lightning  # noqa: F401  (likewise)
from native.moved import _OldNames

OLD = {old: new for finder in sys.meta_path if isinstance(finder, _OldNames) for old, new in finder.moved.items()}


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_gives_todays_module_and_a_warning(old):
    sys.modules.pop(old, None)
    today = importlib.import_module(OLD[old])
    said_of_itself = today.__spec__
    with pytest.warns(DeprecationWarning, match=f"{old} is {OLD[old]} now"):
        module = importlib.import_module(old)
    assert module is today
    assert today.__spec__ is said_of_itself
    assert today.__name__ == OLD[old]


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("native.nonesuch")
