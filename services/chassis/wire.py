"""Parts of protobuf's wire format, for messages that are assembled from serialized parts."""


def varint(number: int) -> bytes:
    """Returns a number, which is not negative, as a varint, such as the length of a field."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
