"""Uploads, the image pipeline, and where variants lie."""
