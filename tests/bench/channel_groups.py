"""Which tensors of a torch network share channels, residual connections included, and networks of other widths.

What ``espalier/compress/graph_groups.py`` is held against: the dependencies are traced by Torch-Pruning (Fang et al.,
"DepGraph: Towards Any Structural Pruning", CVPR 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import nn

from espalier.compress.growth import ChannelGroup, Member, Tensors
from espalier.errors import UnsupportedError


def tensors_of(module: nn.Module) -> Tensors:
    """Every parameter and statistic of ``module`` by name, as arrays of their own."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}


def channel_groups(module: nn.Module, shape: tuple[int, int, int]) -> tuple[ChannelGroup, ...]:
    """The groups of channels of ``module`` that can be made more or fewer; those of the image and the logits cannot.

    Parameters
    ----------
    shape : (channels, height, width)
        Of an image.

    Raises UnsupportedError for a convolution in groups that is not depthwise, for concatenated channels, and for
    layers with parameters other than convolutions, linear layers and batch norm.
    """
    traced = copy.deepcopy(module).eval().requires_grad_(True).cpu()
    names = {layer: name for name, layer in traced.named_modules()}
    for layer, name in names.items():
        _check_layer(name, layer)
    graph = torch_pruning.DependencyGraph().build_dependency(traced, example_inputs=torch.zeros(1, *shape))
    fixed = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    found = (_group(items, names, fixed) for items in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    order = {name: index for index, name in enumerate(traced.state_dict())}
    return tuple(sorted((group for group in found if group.read), key=lambda group: order[group.made[0].name]))


def resized(module: nn.Module, tensors: Mapping[str, NDArray]) -> nn.Module:
    """A copy of ``module`` with ``tensors`` (all that :func:`tensors_of` names), its layers as wide as those are."""
    new = copy.deepcopy(module)
    for name, layer in new.named_modules():
        for key in (*layer._parameters, *layer._buffers):
            full = f"{name}.{key}" if name else key
            if full in tensors:
                _set(layer, key, tensors[full])
        _set_widths(layer)
    return new


def _check_layer(name: str, layer: nn.Module) -> None:
    match layer:
        case nn.Conv2d() if layer.groups > 1 and not _is_depthwise(layer):
            raise UnsupportedError(f"Channels are traced through convolutions in one group and depthwise ones, and "
                                   f"{name!r} has {layer.groups} groups: leave this network's widths as they are")
        case nn.Conv2d() | nn.Linear() | nn.BatchNorm2d() | nn.BatchNorm1d():
            pass
        case _ if layer._parameters:
            raise UnsupportedError(f"Channels are traced through convolutions, linear layers and batch norm, and "
                                   f"{name!r} is a {type(layer).__name__}: leave this network's widths as they are")
        case _:
            pass


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return 1 < layer.groups == layer.in_channels == layer.out_channels


def _group(items: torch_pruning.Group, names: Mapping[nn.Module, str], fixed: set[str]) -> ChannelGroup:
    made: dict[Member, None] = {}
    read: dict[Member, None] = {}
    for item in items:
        layer = item.dep.target.module
        if layer not in names:
            continue  # an operation without parameters
        reads = _reads(layer, item.dep.handler.__name__)
        length = len(layer.weight[0] if reads else layer.weight)
        span = _span(dict(zip(item.idxs, item.root_idxs, strict=True)), length, names[layer])
        if reads:
            name = f"{names[layer]}.weight"
            read[Member(name, 1, span, name in fixed)] = None
        else:
            made.update(dict.fromkeys(Member(name, 0, span, name in fixed)
                                      for name in _per_channel(names[layer], layer)))
    return ChannelGroup(*(tuple(sorted(members, key=lambda member: member.name)) for members in (made, read)))


def _reads(layer: nn.Module, handler: str) -> bool:
    """Whether a layer only reads the channels; batch norm and depthwise convolutions hand them on."""
    match layer:
        case nn.Conv2d():
            return handler == "prune_in_channels" and not _is_depthwise(layer)
        case nn.Linear():
            return handler == "prune_in_channels"
        case _:
            return False


def _span(units: dict[int, int], length: int, name: str) -> int:
    """How many consecutive positions of ``length`` a unit has, given the unit by position."""
    span = length // (max(units.values()) + 1)
    if units != {position: position // span for position in range(length)}:
        raise UnsupportedError(f"Channels are traced where layer {name!r} reads all channels of one layer in order, "
                               f"not concatenated ones: leave this network's widths as they are")
    return span


def _per_channel(name: str, layer: nn.Module) -> Iterator[str]:
    for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is not None and tensor.ndim:
            yield f"{name}.{key}"


def _set(layer: nn.Module, key: str, array: NDArray) -> None:
    old = getattr(layer, key)
    tensor = torch.from_numpy(np.array(array)).to(old.device)
    setattr(layer, key, nn.Parameter(tensor, old.requires_grad) if key in layer._parameters else tensor)


def _set_widths(layer: nn.Module) -> None:
    match layer:
        case nn.Conv2d():
            layer.groups = 1 if layer.groups == 1 else len(layer.weight)
            layer.out_channels, layer.in_channels = len(layer.weight), layer.weight.shape[1] * layer.groups
        case nn.Linear():
            layer.out_features, layer.in_features = layer.weight.shape
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            if layer.running_mean is not None:
                layer.num_features = len(layer.running_mean)
        case _:
            pass
