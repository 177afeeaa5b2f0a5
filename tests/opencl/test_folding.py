"""One kernel for those that differ in numbers."""

from __future__ import annotations

from espalier.opencl.folding import Text, folded


def kernel(name: str, read: str, written: str, loop: str, more: str = "") -> Text:
    """One that adds up; its parameters are in the order of their names, as TVM has them."""
    first, second = sorted((read, written))
    head = f"__kernel void {name}(__global float* restrict {first}_ptr, __global float* restrict {second}_ptr)"
    source = (f"{head};\n{head} {{\n  float _ptr[2];\n  for (int i = 0; i < {loop}; ++i) {{\n"
              f"    {written}_ptr[i] = {read}_ptr[(i * {loop}) + 7] * 1.5e+00f{more};\n  }}\n}}\n")
    return Text(name, source, (first, second), (read, written))


def test_sizes_become_arguments() -> None:
    """What is equal everywhere stays a number, what varies together is one argument; buffers go by their roles."""
    one, two = folded([kernel("first", "a", "b", "12"), kernel("second", "z", "c", "30")])
    assert one.source == two.source and one.name == two.name == "first"
    assert (one.arguments, one.numbers) == (("a", "b"), (12,)) and (two.arguments, two.numbers) == (("z", "c"), (30,))
    taken = "__global float* restrict buffer0_ptr, __global float* restrict buffer1_ptr, int size0"
    assert f"__kernel void first({taken}) {{" in one.source
    assert "i < size0" in one.source and "buffer1_ptr[i] = buffer0_ptr[(i * size0) + 7]" in one.source


def test_equal_kernels_have_no_numbers() -> None:
    one, two = folded([kernel("first", "a", "b", "12"), kernel("second", "c", "d", "12")])
    assert one.source == two.source and one.numbers == two.numbers == ()


def test_other_kernels_stay_as_they_are() -> None:
    """Of another constant, of another operation, or with a number that is too large for an argument."""
    kernels = [kernel("k1", "a", "b", "12"), kernel("k2", "c", "d", "12", " * 2.5e+00f"),
               kernel("k3", "e", "f", "4000000000"), kernel("k4", "g", "h", "12", " + 1.0e+00f")]
    assert folded(kernels) == kernels


def test_lengths_of_arrays_are_no_arguments() -> None:
    one, two = kernel("k1", "a", "b", "12"), kernel("k2", "c", "d", "12")
    other = Text(two.name, two.source.replace("_ptr[2];", "_ptr[4];"), two.arguments, two.roles)
    assert folded([one, other]) == [one, other]
