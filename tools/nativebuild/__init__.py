"""Compiles all C of podwire. units.py lists the units, toolchain.py finds compilers, builder.py compiles, and lint.py
checks the sources.
"""
