from collections.abc import Iterator

import pytest

from espalier.engines import rtl
from espalier.gateware.verilog import verilog


@pytest.fixture(scope="session", autouse=True)
def one_verilog_per_machine() -> Iterator[None]:
    """A network is only a program, so many tests share a machine: its Verilog is written once a session."""
    sources: dict = {}

    def kept(machine):
        if machine not in sources:
            sources[machine] = verilog(machine)
        return sources[machine]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtl, "verilog", kept)
        yield
