"""The Service proxy: turns Services and EndpointSlices into a Dataplane (pure policy), a plan, and kernel rules."""
