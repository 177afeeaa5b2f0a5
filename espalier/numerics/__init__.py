"""What a number means: the one definition of Espalier's arithmetic, in exact integers.

Everything else (interpreter, training path, RTL, netlist) is tested equal to this, bit for bit.
Words are ``int64`` NumPy arrays; axes are N C H W.
"""
