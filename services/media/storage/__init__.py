"""All access to S3.

There are two buckets. The originals bucket contains uploaded files with their metadata; only the
media service and its worker read it. The media bucket contains the variants, which the CDN reads.
In both, the keys of one media item start with its key prefix, see keys.py.
"""
