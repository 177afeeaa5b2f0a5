"""The order in which the loss unit visits logits."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.program.words import bits_for


def element_layout(lanes: int, max_classes: int) -> data.StructLayout:
    """One element of a group: its lane, its class, how many came before it, and two marks of its class."""
    return data.StructLayout({
        "valid": 1, "lane": bits_for(lanes), "category": bits_for(max_classes),
        "number": bits_for(lanes * max_classes), "first": 1, "last": 1})


class ElementWalk(wiring.Component):
    """Names every element once: class by class, in each class lane by lane.

    A class takes ``slots`` cycles, of which the first ``lanes`` name an element.

    Parameters
    ----------
    lanes, slots, max_classes : int
        ``lanes <= slots``.

    Members
    -------
    start, classes : In
        Begin in the next cycle. ``classes`` is quasi-static.
    busy : Out(1)
        For ``slots * classes`` cycles.
    element : Out(element_layout(lanes, max_classes))
    turn : Out(1)
        The last cycle of a class.
    """

    def __init__(self, *, lanes: int, slots: int, max_classes: int):
        assert 1 <= lanes <= slots
        self.lanes, self.slots = lanes, slots
        super().__init__({
            "start": In(1), "classes": In(bits_for(max_classes + 1)), "busy": Out(1),
            "element": Out(element_layout(lanes, max_classes)), "turn": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        element = self.element
        slot = Signal(bits_for(self.slots))
        category, number = Signal.like(element.category), Signal.like(element.number)
        m.d.comb += [
            element.valid.eq(self.busy & (slot < self.lanes)), element.lane.eq(slot), element.category.eq(category),
            element.number.eq(number), element.first.eq(category == 0),
            element.last.eq(category + 1 == self.classes), self.turn.eq(self.busy & (slot == self.slots - 1))]
        with m.If(self.start):
            m.d.sync += [self.busy.eq(1), slot.eq(0), category.eq(0), number.eq(0)]
        with m.Elif(self.busy):
            m.d.sync += [slot.eq(slot + 1), number.eq(number + element.valid)]
            with m.If(self.turn):
                m.d.sync += [slot.eq(0), category.eq(category + 1), self.busy.eq(~element.last)]
        return m
