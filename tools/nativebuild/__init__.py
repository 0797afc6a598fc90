"""Compiles all C of podwire: units.py says what, toolchain.py finds compilers, builder.py runs them, lint.py judges."""
