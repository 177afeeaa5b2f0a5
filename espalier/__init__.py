"""Espalier: train convolutional networks in compressed form and compile them to FPGA trainers."""

__version__ = "0.1.0"
