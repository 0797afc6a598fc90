"""The kernel's connection tracking over ctnetlink: `codec` is pure, `socket` dumps, deletes and hears of events."""
