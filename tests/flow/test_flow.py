"""The stages as a package."""

import pkgutil

from espalier import flow


def test_no_name_is_a_module_and_a_function():
    assert not {module.name for module in pkgutil.iter_modules(flow.__path__)} & set(flow.__all__)
