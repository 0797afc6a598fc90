"""Kubernetes objects, and clients of an API server."""
