"""The roof: the command line, the embedded cluster, the demo and the node agent that runs all roles."""
