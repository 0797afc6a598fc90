"""Who talks to whom: connections of a node as conntrack and the drop logs tell them, folded by pair and named."""
