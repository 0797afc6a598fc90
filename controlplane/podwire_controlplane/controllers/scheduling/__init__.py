"""The scheduler's decisions, each a pure function over places.py's view of the nodes."""
