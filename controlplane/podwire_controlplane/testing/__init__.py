"""An API server and objects for tests."""
