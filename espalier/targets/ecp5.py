"""Lattice ECP5: the parts that the open flow (Yosys, nextpnr, Trellis) takes to a bitstream.

Counts are those of nextpnr-ecp5's utilisation report; shapes are those of DP16KD and PDPW16KD in
Lattice FPGA-TN-02204. No pairs: a multiplier takes 18 × 18 bits, and a pair of 8-bit words packed takes 25.
"""

from __future__ import annotations

from espalier.targets.device import Device, Family, RamShape

_SHAPES = (RamShape(512, 36), RamShape(1024, 18), RamShape(2048, 9), RamShape(4096, 4), RamShape(8192, 2),
           RamShape(16384, 1))


def _ecp5(size: str, package: str, *, luts: int, multipliers: int, block_rams: int, pins: int) -> Device:
    return Device(name=f"ecp5-{size.lower()}", family=Family.ECP5, part=f"LFE5U-{size}", package=package, speed="6",
                  multipliers=multipliers, multiplier_bits=18, pair_bits=0, block_rams=block_rams,
                  block_ram_bits=18 * 1024, block_ram_shapes=_SHAPES, luts=luts, flip_flops=luts, pins=pins)


ECP5_25F = _ecp5("25F", "CABGA381", luts=24_288, multipliers=28, block_rams=56, pins=197)
ECP5_45F = _ecp5("45F", "CABGA554", luts=43_848, multipliers=72, block_rams=108, pins=245)
ECP5_85F = _ecp5("85F", "CABGA756", luts=83_640, multipliers=156, block_rams=208, pins=365)
ECP5_DEVICES = (ECP5_25F, ECP5_45F, ECP5_85F)
