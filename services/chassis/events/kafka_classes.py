"""Makes the Kafka client safe to use from several threads of one process.

kafka-python 3.0.12 has a class for each version of each response, creates it when the first such
response arrives, and finds it through a weak reference. If two threads create the same class at the
same time, the reference may be left pointing to the one that is discarded. Then no client of the
process can parse that response until the process restarts.
"""

import functools

from kafka.protocol.api_header import ResponseClassRegistry


@functools.cache
def make_all() -> None:
    """Creates all of these classes, in 20 ms. To be called before other threads use the client."""
    for response in list(ResponseClassRegistry._response_class_registry.values()):
        whole = response[None]
        # Compiling a decoder replaces this reference, which is not thread-safe either.
        whole._struct._data_class = whole
        for version in range(len(whole)):
            whole[version]
