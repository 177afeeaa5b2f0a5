"""Altera Cyclone V: synthesised by Yosys for its figures; bitstreams come from the vendor's tool.

Counts as Quartus reports them for the part; shapes are those of M10K as simple dual port.
"""

from __future__ import annotations

from espalier.targets.device import Device, Family, RamShape

_SHAPES = (RamShape(256, 40), RamShape(512, 20), RamShape(1024, 10), RamShape(2048, 5), RamShape(4096, 2),
           RamShape(8192, 1))

#: The part of the DE10-Nano. Each of its 112 DSP blocks holds two 18-bit multipliers, or one of 27 bits: a pair would
#: take the whole block, which makes two products without.
CYCLONE5_SE_A6 = Device(name="5cseba6", family=Family.CYCLONE5, part="5CSEBA6U23I7", package="U23", speed="7",
                        multipliers=224, multiplier_bits=18, pair_bits=0, block_rams=553, block_ram_bits=10 * 1024,
                        block_ram_shapes=_SHAPES, luts=41_910, flip_flops=167_640, pins=145)
CYCLONE5_DEVICES = (CYCLONE5_SE_A6,)
