"""The Linux kernel: network namespaces, netlink, nf_tables."""
