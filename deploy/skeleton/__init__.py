"""Writes the skeleton of a new service."""
