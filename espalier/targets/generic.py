"""No part at all: nothing is limited. What a machine that is only simulated is built for."""

from __future__ import annotations

from espalier.targets.device import Device, Family, RamShape

GENERIC = Device(name="generic", family=Family.GENERIC, part="", package="", speed="", multipliers=None,
                 multiplier_bits=18, pair_bits=None, block_rams=None, block_ram_bits=18 * 1024,
                 block_ram_shapes=(RamShape(512, 36), RamShape(1024, 18), RamShape(2048, 9)), luts=None,
                 flip_flops=None, pins=None)
GENERIC_DEVICES = (GENERIC,)
