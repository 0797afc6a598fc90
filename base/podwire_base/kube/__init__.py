"""Kubernetes objects and how to reach an API server."""
