"""The node agent's part of a kubelet: pods as processes in network namespaces."""
