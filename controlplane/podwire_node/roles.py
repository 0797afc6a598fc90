"""The roles of a node, and the conditions of its Node that tell where they stand. Pure."""

ROLES = {
    "wiring": "PodwireWiring",
    "proxy": "PodwireProxy",
    "dns-feeder": "PodwireDnsFeeder",
    "dns": "PodwireDns",
    "lb": "PodwireLoadBalancer",
    "policy": "PodwirePolicy",
    "observe": "PodwireObserve",
}
