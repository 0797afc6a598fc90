"""The kernel's connection tracking over ctnetlink: `codec` is pure; `socket` dumps and deletes entries and receives
events.
"""
