"""nf_tables over nfnetlink: `ruleset` is the language, `socket` the connection, `fake` a kernel in memory."""
