"""Netlink: attributes (codec)."""
