"""The `cri` runtime: ordinary images by containerd, over the Kubernetes Container Runtime Interface (CRI v1)."""
