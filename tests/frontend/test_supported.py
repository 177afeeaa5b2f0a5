"""The table of supported layers and the page generated from it."""

import pytest
import torch

from espalier.errors import UnsupportedError
from espalier.frontend import supported
from espalier.frontend.supported import Option, Span


def test_page_is_generated_from_the_table(pytestconfig: pytest.Config) -> None:
    page = pytestconfig.rootpath / "docs" / "supported-layers.md"
    assert page.read_text(encoding="utf-8") == supported.markdown(), (
        "write docs/supported-layers.md anew: python -m espalier.frontend.supported > docs/supported-layers.md")


def test_every_torch_operator_exists() -> None:
    for layer in supported.LAYERS:
        for operator in layer.torch:
            packet, overload = operator.split(".")
            assert overload in getattr(torch.ops.aten, packet).overloads()


def test_every_layer_has_its_own_name() -> None:
    names = [layer.name for layer in supported.LAYERS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("span", "text", "inside", "outside"), [
    (Span(1), "1 and up", 7, 0), (Span(1, 16), "1..16", 16, 17), (Span(0, 0), "0", 0, 1)])
def test_span(span: Span, text: str, inside: int, outside: int) -> None:
    assert str(span) == text and inside in span and outside not in span


def test_check_wrong() -> None:
    layer = supported.Layer("Row", (), (), supported.Ranges(((Option.KERNEL, Span(1, 16)),)), None)
    layer.check("Layer 'c'", kernel=(16, 1))
    with pytest.raises(UnsupportedError, match=r"^Layer 'c': Row takes kernel 1\.\.16, not \(17, 1\)$"):
        layer.check("Layer 'c'", kernel=(17, 1))


@pytest.mark.parametrize(("operator", "form"), [
    ("InstanceNormalization", "use BatchNorm2d directly after the convolution"),
    ("native_group_norm.default", "use BatchNorm2d directly after the convolution"),
    ("slice.Tensor", "take every second pixel by the stride of a convolution"),
    ("LeakyRelu", "use ReLU"), ("sigmoid.default", "use ReLU"), ("ConvTranspose", "use Conv2d, or"),
    ("conv3d.default", "use Conv2d"), ("LogSoftmax", "let the network end in its logits"),
    ("Einsum", "see docs/supported-layers.md")])
def test_unsupported_names_the_nearest_form(operator: str, form: str) -> None:
    assert form in str(supported.unsupported("Layer 'a'", operator))
