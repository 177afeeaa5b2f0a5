"""The loss unit: logits and labels in, gradients and counters out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, DomainRenamer, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from espalier.gateware.arithmetic import delay_line
from espalier.gateware.element_walk import ElementWalk
from espalier.gateware.loss_arithmetic import VALUE_BITS, LossArithmetic, loss_rule
from espalier.gateware.reciprocal import Reciprocal
from espalier.numerics.loss import EXP_FRAC, EXP_TABLE, LN2, LN_TABLE, RECIPROCAL_FRAC, TABLE_BITS
from espalier.program.words import bits_for

LOSS_SUM_BITS = 48
CORRECT_BITS = 32
RESULT = 1 + LossArithmetic.latency_cycles  #: cycles from an element's turn to its result
BEST = 2  #: cycles from an element's turn to the write of its lane's best


@dataclass(frozen=True, slots=True)
class _Walk:
    """What the parts of the unit look at: which walk this is (one signal is high), and its elements.

    ``elements[k]`` is the element whose turn was ``k`` cycles ago, ``is_label[k]`` whether its class is
    its image's label.
    """

    largest: Signal
    exponentials: Signal
    gradients: Signal
    elements: Sequence[data.View]
    is_label: Sequence[Value]


class LossUnit(wiring.Component):
    """``numerics.loss`` on one group of ``lanes`` images: gradients, sum of losses, correct answers.

    Walks three times over the elements: for the largest logit of each image; for exponentials and
    their sums; for gradients. Between the last two it divides once per image. The square hinge loss
    needs only the first and the third. :meth:`cycles` gives the time.

    Parameters
    ----------
    lanes, word_bits, max_classes : int
        As in the machine.
    read_latency : int
        Cycles from ``logit_class`` to its ``logit_vector``, at least 1.

    Members
    -------
    start : In(1)
        Begin; not while ``busy``.
    rule : In(loss_rule(max_classes))
        Quasi-static from ``start`` (with its cycle) to ``done``.
    labels : In
        The class of each image; one that is not below ``classes`` matches none. Quasi-static.
    logit_class, logit_vector : Out, In
        Read port for logits.
    out_valid, out_class, out_vector : Out
        A vector of gradients, in the order of classes. The last comes at the latest with ``done``.
    busy, done : Out(1)
        ``busy`` from the cycle after ``start`` through ``done``, which is one cycle long.
    clear_counters : In(1)
        Set both counters to zero.
    loss_sum : Out(signed(48))
        Sum of the images' losses with LOSS_FRAC fraction bits, modulo ``2**48``.
    correct : Out(32)
        Images whose first largest logit was the label's.
    """

    def __init__(self, *, lanes: int, word_bits: int, max_classes: int, read_latency: int = 2):
        assert lanes >= 1 and max_classes >= 2 and read_latency >= 1
        self.lanes, self.word_bits, self.max_classes, self.read_latency = lanes, word_bits, max_classes, read_latency
        self._reciprocal = Reciprocal(exponent=RECIPROCAL_FRAC, least=EXP_FRAC, divisor_bits=self.total_bits)
        vector = data.ArrayLayout(signed(word_bits), lanes)
        super().__init__({
            "start": In(1), "rule": In(loss_rule(max_classes)),
            "labels": In(data.ArrayLayout(unsigned(bits_for(max_classes)), lanes)),
            "logit_class": Out(bits_for(max_classes)), "logit_vector": In(vector),
            "out_valid": Out(1), "out_class": Out(bits_for(max_classes)), "out_vector": Out(vector),
            "busy": Out(1), "done": Out(1), "clear_counters": In(1),
            "loss_sum": Out(signed(LOSS_SUM_BITS)), "correct": Out(CORRECT_BITS)})

    @property
    def slots(self) -> int:
        """Cycles per class: enough that a lane's best is written and the next vector is there before it is needed."""
        return max(self.lanes, BEST + 1, self.read_latency + 1)

    def cycles(self, classes: int, *, hinge: bool) -> int:
        """Cycles from ``start`` to ``done``."""
        settling = max(0, RESULT - (self.slots - self.lanes))
        walk = 1 + classes * self.slots + settling
        fetch = 1 + self.read_latency
        divide = self.lanes * (2 + self._reciprocal.latency_cycles)
        return fetch + (2 * walk if hinge else 3 * walk + divide)

    @property
    def total_bits(self) -> int:
        """Width of a sum of exponentials."""
        return (self.max_classes << EXP_FRAC).bit_length()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.steps = steps = ElementWalk(lanes=self.lanes, slots=self.slots, max_classes=self.max_classes)
        arithmetic = LossArithmetic(word_bits=self.word_bits, max_classes=self.max_classes)
        m.submodules.arithmetic = DomainRenamer("data")(arithmetic)  # without reset
        m.submodules.reciprocal = reciprocal = self._reciprocal
        is_label = Signal()
        m.d.comb += [is_label.eq(self.labels[steps.element.lane] == steps.element.category),
                     steps.classes.eq(self.rule.classes)]
        walk = _Walk(Signal(name="largest"), Signal(name="exponentials"), Signal(name="gradients"),
                     delay_line(m, steps.element, RESULT, "element"), delay_line(m, is_label, RESULT, "is_label"))
        fetched, divided, dividing = Signal(), Signal(), Signal(bits_for(self.lanes))

        logit = self._vector(m, walk, fetched | walk.largest & steps.turn, arithmetic.gradient)
        m.d.comb += [
            arithmetic.rule.eq(self.rule), arithmetic.exponentials.eq(walk.exponentials),
            arithmetic.valid.eq(walk.elements[1].valid & ~walk.largest), arithmetic.is_label.eq(walk.is_label[1]),
            arithmetic.value.eq(self._values(m, walk, logit, arithmetic.exponential)),
            arithmetic.maximum.eq(self._best(m, walk, logit)),
        ]
        self._totals(m, walk, arithmetic, reciprocal, dividing, divided)
        self._loss(m, walk, arithmetic, reciprocal, divided)
        self._sequence(m, walk, steps, reciprocal, fetched, dividing, divided)
        return m

    def _vector(self, m: Module, walk: _Walk, load: Value, gradient: Value) -> Value:
        """One shift register takes vectors of logits apart and puts vectors of gradients together."""
        register = Signal(self.word_bits * self.lanes)
        arrived = Signal()
        result = walk.elements[RESULT]
        m.d.comb += [arrived.eq(walk.gradients & result.valid), self.out_vector.as_value().eq(register)]
        m.d.sync += self.out_valid.eq(arrived & (result.lane == self.lanes - 1))
        with m.If(load):
            m.d.sync += register.eq(self.logit_vector)
        with m.Elif(arrived | walk.largest & walk.elements[0].valid):
            m.d.sync += register.eq(Cat(register[self.word_bits:], gradient))
        more = Signal()
        m.d.sync += more.eq(self.logit_class + 1 != self.rule.classes)
        with m.If(self.start):
            m.d.sync += self.logit_class.eq(0)
        with m.Elif(load & more):
            m.d.sync += self.logit_class.eq(self.logit_class + 1)
        with m.If(self.start):
            m.d.sync += self.out_class.eq(0)
        with m.Elif(self.out_valid):
            m.d.sync += self.out_class.eq(self.out_class + 1)
        return register[:self.word_bits].as_signed()

    def _values(self, m: Module, walk: _Walk, logit: Value, exponential: Value) -> Value:
        """The memory of logits, each of which its exponential replaces; the value whose turn was one cycle ago."""
        m.submodules.values = values = Memory(shape=VALUE_BITS, depth=self.lanes * self.max_classes, init=[])
        read, write = values.read_port(), values.write_port()
        now, result = walk.elements[0], walk.elements[RESULT]
        m.d.comb += [
            read.addr.eq(now.number),
            write.addr.eq(Mux(walk.largest, now.number, result.number)),
            write.data.eq(Mux(walk.largest, logit, exponential)),
            write.en.eq(walk.largest & now.valid | walk.exponentials & result.valid),
        ]
        return read.data

    def _best(self, m: Module, walk: _Walk, logit: Value) -> Value:
        """Finds each lane's largest logit and whether it is the label's; the largest of one cycle ago's lane."""
        layout = data.StructLayout({"logit": signed(self.word_bits), "hit": 1})
        m.submodules.best = memory = Memory(shape=layout, depth=max(2, self.lanes), init=[])
        read, write = memory.read_port(), memory.write_port()
        candidate, better, best = Signal(signed(self.word_bits)), Signal(), Signal(layout)
        m.d.comb += better.eq(walk.elements[1].first | (candidate > read.data.logit))
        m.d.sync += [
            candidate.eq(logit), best.logit.eq(Mux(better, candidate, read.data.logit)),
            best.hit.eq(Mux(better, walk.is_label[1], read.data.hit))]
        found = walk.elements[BEST]
        m.d.comb += [read.addr.eq(walk.elements[0].lane), write.addr.eq(found.lane), write.data.eq(best),
                     write.en.eq(walk.largest & found.valid)]
        with m.If(self.clear_counters):
            m.d.sync += self.correct.eq(0)
        with m.Else():
            m.d.sync += self.correct.eq(self.correct + (write.en & found.last & best.hit))
        return read.data.logit

    def _totals(self, m: Module, walk: _Walk, arithmetic: LossArithmetic, reciprocal: Reciprocal, dividing: Value,
                divided: Value) -> None:
        """The memory of each lane's sum of exponentials, which its reciprocal replaces."""
        bits = max(self.total_bits, len(reciprocal.quotient))
        m.submodules.totals = memory = Memory(shape=bits, depth=max(2, self.lanes), init=[])
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += [arithmetic.reciprocal.eq(read.data), reciprocal.divisor.eq(read.data)]
        result = walk.elements[RESULT]
        with m.If(walk.exponentials):
            m.d.comb += [
                read.addr.eq(walk.elements[RESULT - 1].lane), write.addr.eq(result.lane), write.en.eq(result.valid),
                write.data.eq(Mux(result.first, 0, read.data) + arithmetic.exponential)]
        with m.Else():
            m.d.comb += [read.addr.eq(Mux(walk.gradients, walk.elements[0].lane, dividing)),
                         write.addr.eq(dividing), write.en.eq(divided), write.data.eq(reciprocal.quotient)]

    def _loss(self, m: Module, walk: _Walk, arithmetic: LossArithmetic, reciprocal: Reciprocal,
              divided: Value) -> None:
        """The table of exponentials and logarithms; the sum of losses."""
        m.submodules.table = memory = Memory(shape=VALUE_BITS, depth=2 << TABLE_BITS, init=EXP_TABLE + LN_TABLE)
        table = memory.read_port()
        index, whole = Signal(TABLE_BITS), Signal(range((self.total_bits - EXP_FRAC) * LN2))
        for octave in range(self.total_bits - EXP_FRAC):  # the highest one of the sum wins
            one = EXP_FRAC + octave
            with m.If(reciprocal.held[one]):
                m.d.comb += [index.eq(reciprocal.held[one - TABLE_BITS:one]), whole.eq(octave * LN2)]
        m.d.comb += [table.addr.eq(Mux(walk.exponentials, arithmetic.table_address, Cat(index, 1))),
                     arithmetic.table.eq(table.data)]
        logarithm, term, valid = Signal(len(whole) + 1), Signal(len(arithmetic.term)), Signal()
        m.d.sync += [logarithm.eq(whole + table.data),  # at rest long before the division is done
                     term.eq(Mux(divided, logarithm, arithmetic.term)),
                     valid.eq(divided | arithmetic.term_valid)]
        with m.If(self.clear_counters):
            m.d.sync += self.loss_sum.eq(0)
        with m.Elif(valid):
            m.d.sync += self.loss_sum.eq(self.loss_sum + term)

    def _sequence(self, m: Module, walk: _Walk, steps: ElementWalk, reciprocal: Reciprocal, fetched: Signal,
                  dividing: Signal, divided: Signal) -> None:
        waited, settled = Signal(range(self.read_latency + 1)), Signal()
        following = Signal()  # elements whose turn is over, not yet their result
        m.d.sync += following.eq(Cat(element.valid for element in walk.elements[:-1]).any())
        m.d.comb += settled.eq(~(steps.busy | following))
        with m.FSM() as states:
            m.d.comb += self.busy.eq(~states.ongoing("IDLE"))
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += waited.eq(0)
                m.next = "FETCH"
            with m.State("FETCH"):
                m.d.sync += waited.eq(waited + 1)
                with m.If(waited == self.read_latency):
                    m.d.comb += [fetched.eq(1), steps.start.eq(1)]
                    m.next = "LARGEST"
            with m.State("LARGEST"):
                m.d.comb += walk.largest.eq(1)
                with m.If(settled):
                    m.d.comb += steps.start.eq(1)
                    with m.If(self.rule.hinge):
                        m.next = "GRADIENTS"
                    with m.Else():
                        m.next = "EXPONENTIALS"
            with m.State("EXPONENTIALS"):
                m.d.comb += walk.exponentials.eq(1)
                m.d.sync += dividing.eq(0)
                with m.If(settled):
                    m.next = "TOTAL"
            with m.State("TOTAL"):  # the sum leaves its memory
                m.next = "DIVIDE"
            with m.State("DIVIDE"):
                m.d.comb += reciprocal.start.eq(1)
                m.next = "QUOTIENT"
            with m.State("QUOTIENT"), m.If(reciprocal.done):
                m.d.comb += divided.eq(1)
                m.d.sync += dividing.eq(dividing + 1)
                m.next = "TOTAL"
                with m.If(dividing == self.lanes - 1):
                    m.d.comb += steps.start.eq(1)
                    m.next = "GRADIENTS"
            with m.State("GRADIENTS"):
                m.d.comb += walk.gradients.eq(1)
                with m.If(settled):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
