"""A client of any Kubernetes API server: requests, and live copies of resources."""
