"""Shared by every role of a node: logs, status, a supervisor, atomic files, and a clean end."""
