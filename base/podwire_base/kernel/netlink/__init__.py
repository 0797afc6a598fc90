"""Netlink: `codec` and `rtnetlink` are pure, `socket` has the sockets."""
