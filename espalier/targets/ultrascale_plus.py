"""AMD UltraScale+: synthesised by Yosys for its figures; bitstreams come from the vendor's tool.

Counts from AMD DS891 (Zynq UltraScale+); shapes are those of RAMB18E2 as simple dual port (UG573).
"""

from __future__ import annotations

from espalier.targets.device import Device, Family, RamShape

_SHAPES = (RamShape(512, 36), RamShape(1024, 18), RamShape(2048, 9), RamShape(4096, 4), RamShape(8192, 2),
           RamShape(16384, 1))

#: The part of the ZCU102. A RAM here is half of a 36-kbit block.
XCZU9EG = Device(name="xczu9eg", family=Family.ULTRASCALE_PLUS, part="xczu9eg", package="-ffvb1156", speed="-2-e",
                 multipliers=2520, multiplier_bits=18, pair_bits=8, block_rams=1824, block_ram_bits=18 * 1024,
                 block_ram_shapes=_SHAPES, luts=274_080, flip_flops=548_160, pins=328)
ULTRASCALE_PLUS_DEVICES = (XCZU9EG,)
