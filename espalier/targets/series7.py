"""AMD 7-series: synthesised by Yosys for its figures; bitstreams come from the vendor's tool.

Counts from AMD DS190 (Zynq-7000) and DS180; shapes are those of RAMB18E1 as simple dual port (UG473).
"""

from __future__ import annotations

from espalier.targets.device import Device, Family, RamShape

_SHAPES = (RamShape(512, 36), RamShape(1024, 18), RamShape(2048, 9), RamShape(4096, 4), RamShape(8192, 2),
           RamShape(16384, 1))

#: Zynq-7020, the part of the PYNQ-Z1, PYNQ-Z2 and ZedBoard. A RAM here is half of a 36-kbit block. A DSP48E1 takes
#: operands of 25 and 18 bits, and a pair of 8-bit words packed takes 25.
XC7Z020 = Device(name="xc7z020", family=Family.SERIES7, part="xc7z020", package="clg400", speed="-1", multipliers=220,
                 multiplier_bits=18, pair_bits=8, block_rams=280, block_ram_bits=18 * 1024, block_ram_shapes=_SHAPES,
                 luts=53_200, flip_flops=106_400, pins=125)
SERIES7_DEVICES = (XC7Z020,)
