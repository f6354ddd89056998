"""The image pipeline, which makes variants and facts from the bytes of a photo.

`render` and the modules that it uses decode and encode. They run in child processes (`child`),
which `renderers` starts, limits and replaces, so that no file can crash the worker.
"""
