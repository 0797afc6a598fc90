"""The node agent in place of a kubelet: it runs pods as processes in network namespaces."""
