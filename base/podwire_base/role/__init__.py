"""What every role of a node needs: logs, status, a supervisor, whole files, and a clean end."""
