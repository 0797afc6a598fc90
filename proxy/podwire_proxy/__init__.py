"""The Service proxy: Services and EndpointSlices -> Dataplane (policy, pure) -> nf_tables plan -> kernel."""
