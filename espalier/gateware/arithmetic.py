"""Pieces that the arithmetic pipelines share: delay lines and saturation."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value


def delay_line(m: Module, value: Value, cycles: int, name: str) -> list[Value]:
    """``value`` and its registered copies: element ``k`` of the list is ``value`` of ``k`` cycles ago."""
    stages = [value]
    for stage in range(1, cycles + 1):
        register = Signal(value.shape(), name=f"{name}_{stage}")
        m.d.sync += register.eq(stages[-1])
        stages.append(register)
    return stages


def largest(width: Value, bits: int) -> Value:
    """The largest signed word of ``width`` bits, ``1 <= width <= bits``; all ones below the sign."""
    return Cat((width > place + 1) for place in range(bits - 1))


def saturate(value: Value, high: Value, bits: int) -> Value:
    """Bring signed ``value`` into ``-high-1 .. high`` where ``high`` is all ones below the sign.

    ``high`` is as :func:`largest` makes it, ``bits - 1`` wide; the result is signed, ``bits`` wide. A
    narrower ``value`` is widened. Costs one wide OR and one multiplexer, no comparison.
    """
    assert len(high) == bits - 1
    width = max(len(value), bits)
    sign = value[-1]
    wide = Cat(value, sign.replicate(width - len(value)))
    above = Cat(~high, Const(1).replicate(width - len(high)))
    outside = ((wide ^ sign.replicate(width)) & above).any()
    end = Cat(high ^ sign.replicate(len(high)), sign)
    return Mux(outside, end, wide[:bits]).as_signed()
