"""The page of what each optimisation does to the code."""

import pytest

from espalier.opencl import passes_page
from espalier.opencl.optimisations import NAMES


def test_page_is_what_the_generator_prints(pytestconfig: pytest.Config) -> None:
    page = pytestconfig.rootpath / "docs" / "opencl-passes.md"
    assert page.read_text(encoding="utf-8") == passes_page.markdown(), (
        "write docs/opencl-passes.md anew: python -m espalier.opencl.passes_page > docs/opencl-passes.md")


def test_every_optimisation_has_its_section() -> None:
    assert tuple(passes_page.SECTIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_optimisation_changes_its_example(name: str) -> None:
    example = passes_page.SECTIONS[name].example
    before, after = (example.compiled(NAMES.index(name) + more) for more in (0, 1))
    assert (before.source, before.launches) != (after.source, after.launches)
