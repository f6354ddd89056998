"""Uploads, the image pipeline, and the storage of variants."""
