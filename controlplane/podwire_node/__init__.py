"""The kubelet's part of the node agent: pods as processes in network namespaces."""
