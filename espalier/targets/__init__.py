"""The parts that a machine can be built for: one small file a family, looked up by name."""

from __future__ import annotations

from espalier.errors import UnsupportedError
from espalier.targets.cyclone5 import CYCLONE5_DEVICES
from espalier.targets.device import Device, Family, RamShape
from espalier.targets.ecp5 import ECP5_25F, ECP5_45F, ECP5_85F, ECP5_DEVICES
from espalier.targets.generic import GENERIC, GENERIC_DEVICES
from espalier.targets.series7 import SERIES7_DEVICES
from espalier.targets.ultrascale_plus import ULTRASCALE_PLUS_DEVICES

DEVICES: dict[str, Device] = {
    device.name: device for device in (*GENERIC_DEVICES, *ECP5_DEVICES, *SERIES7_DEVICES, *ULTRASCALE_PLUS_DEVICES,
                                       *CYCLONE5_DEVICES)}


def find_device(name: str) -> Device:
    """The device called ``name``, in any case; an unknown name is an :class:`UnsupportedError`."""
    device = DEVICES.get(name.lower())
    if device is None:
        raise UnsupportedError(f"A device must be one of {', '.join(DEVICES)}, not {name!r}")
    return device


__all__ = ["DEVICES", "ECP5_25F", "ECP5_45F", "ECP5_85F", "GENERIC", "Device", "Family", "RamShape", "find_device"]
