"""What tests of the training path share."""

from collections.abc import Iterator

import pytest

from espalier.train import native_code


@pytest.fixture
def native_code_anew() -> Iterator[None]:
    """The native code is compiled and loaded anew for this test, and for the one after it."""
    native_code.library.cache_clear()
    yield
    native_code.library.cache_clear()
