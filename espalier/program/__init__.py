"""What a machine is told: command words, index lists and memory images.

The compiler encodes from these declarations and the gateware builds its layouts from them.
"""
