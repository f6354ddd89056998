"""Demonstrates the main use case: people, photos, a follow graph, and one feed."""
