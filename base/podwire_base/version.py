"""The version of podwire, as in pyproject.toml. importlib.metadata knows it too, but costs an agent 0.8 MiB."""

VERSION = "0.2.0"
