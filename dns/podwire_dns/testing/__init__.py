"""The conformance table and its helpers, for the unit tests, for netns-tests and for other DNS servers."""
