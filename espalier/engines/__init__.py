"""Run a compiled network: on the interpreter, in RTL simulation."""
