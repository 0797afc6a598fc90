"""The application package: the command line, the embedded cluster, the demo, the installation, and the agent that
composes the roles.
"""
