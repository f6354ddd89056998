"""Watches of feeds: sends new posts to watchers as they arrive."""
