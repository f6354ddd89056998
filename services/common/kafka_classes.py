"""Makes the Kafka client safe to use from several threads of one process.

It keeps a class for each version of each answer of the broker, made when the first one comes, and
finds them through weak references. Two threads that make one at the same time may leave a reference
to the one that is thrown away: then no client of the process understands that kind of answer any
more, until it is started again. (kafka-python 3.0.12; its tests know one client at a time.)
"""

import functools

from kafka.protocol.api_header import ResponseClassRegistry


@functools.cache
def make_all() -> None:
    """Makes all of these classes, in 20 ms. To be called before there are threads."""
    for response in list(ResponseClassRegistry._response_class_registry.values()):
        whole = response[None]
        # While a decoder is compiled the reference is replaced, which is no safer.
        whole._struct._data_class = whole
        for version in range(len(whole)):
            whole[version]
