"""Code that all roles of a node share: logs, status, a supervisor, atomic files, and the orderly end of a process."""
