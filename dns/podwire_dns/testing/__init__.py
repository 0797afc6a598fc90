"""The conformance table and its helpers, for the unit tests, the netns-tests and anybody's own server."""
