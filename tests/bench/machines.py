"""The few machines that the engines' tests share: compiling the simulation of one takes most of a minute."""

from espalier.arch.machine import Machine

DEPTHS = {"activation_depth": 1024, "gradient_depth": 512, "weight_depth": 512, "index_depth": 4096,
          "table_depth": 1024, "program_depth": 64}
DEEP = {"activation_depth": 2048, "gradient_depth": 1024, "weight_depth": 2048, "index_depth": 4096,
        "table_depth": 4096, "program_depth": 512}
TWO_BY_FOUR = Machine(rows=2, lanes=4, acc_bits=42, **DEPTHS)
GROUPED = Machine(rows=4, lanes=2, word_bits=8, groups=True, trees=2, clips=True, acc_bits=26, **DEPTHS)
PAIRED = Machine(rows=2, lanes=2, word_bits=8, pairs=True, acc_bits=26, **DEPTHS)
MACHINES = (Machine(rows=1, lanes=3, acc_bits=42, **{**DEPTHS, "weight_depth": 4096}), TWO_BY_FOUR,
            Machine(rows=8, lanes=2, trees=4, clips=True, acc_bits=42, **DEPTHS),
            Machine(rows=16, lanes=2, trees=16, acc_bits=42, **DEPTHS), GROUPED, PAIRED)
MANY_ROWS = Machine(rows=64, lanes=1, trees=8, acc_bits=42, **{**DEPTHS, "weight_depth": 64, "table_depth": 256})
