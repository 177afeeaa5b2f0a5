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
    return _clipped(value, _outside(value, high), high, bits)


def saturate_later(m: Module, value: Value, high: Value, bits: int, name: str) -> Value:
    """:func:`saturate` of ``value`` one cycle ago: a register between the wide OR and the multiplexer."""
    outside, late = Signal(name=f"{name}_outside"), Signal.like(value, name=f"{name}_late")
    m.d.sync += [outside.eq(_outside(value, high)), late.eq(value)]
    return _clipped(late, outside, high, bits)


def _outside(value: Value, high: Value) -> Value:
    width = max(len(value), len(high) + 1)
    sign = value[-1]
    wide = Cat(value, sign.replicate(width - len(value)))
    above = Cat(~high, Const(1).replicate(width - len(high)))
    return ((wide ^ sign.replicate(width)) & above).any()


def _clipped(value: Value, outside: Value, high: Value, bits: int) -> Value:
    assert len(high) == bits - 1
    sign = value[-1]
    wide = Cat(value, sign.replicate(max(0, bits - len(value))))
    end = Cat(high ^ sign.replicate(len(high)), sign)
    return Mux(outside, end, wide[:bits]).as_signed()
