"""From the bytes of a photo to the bytes of its variants.

`render` does the work and is the only module that knows OpenCV. It runs in child processes
(`child`) that `renderers` starts, bounds and replaces: no file can take the worker down.
"""
