import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from bench.builds import make_build, make_trained

from espalier.engines import rtl
from espalier.flow import compile as flow_compile
from espalier.gateware.verilog import verilog


@pytest.fixture(scope="session", autouse=True)
def one_verilog_per_machine() -> Iterator[None]:
    """Verilog depends on the machine alone: it is written once a session."""
    kept = cache(verilog)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtl, "verilog", kept)
        patch.setattr(flow_compile, "verilog", kept)
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with ``net.py``, ``small.npz``, ``train`` and ``build``: read only."""
    folder = make_trained(tmp_path_factory.mktemp("flow"))
    make_build(folder)
    return folder


@pytest.fixture
def build(made, tmp_path) -> Path:
    """A build directory of the test's own."""
    return Path(shutil.copytree(made / "build", tmp_path / "build"))
