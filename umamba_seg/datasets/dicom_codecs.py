"""What pydicom cannot decompress by itself: imagecodecs for lossless JPEG, 12-bit JPEG and high-throughput JPEG 2000.

Importing this module adds it to pydicom's decoders, as a plugin of the form that pydicom documents. The plugins that
pydicom looks for (GDCM, pylibjpeg) come first where they are installed.
"""

from __future__ import annotations

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

_JPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_2000 = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)

DECODER_DEPENDENCIES = {syntax: ("imagecodecs",) for syntax in (*_JPEG, *_JPEG_2000)}


def is_available(syntax: str) -> bool:
    """Whether this plugin decodes a transfer syntax."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Decompress a frame, and tell pydicom how many bits a number has now."""
    decode = imagecodecs.jpeg8_decode if runner.transfer_syntax in _JPEG else imagecodecs.jpeg2k_decode
    pixels = decode(source)
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    return np.ascontiguousarray(pixels).tobytes()


def readable(syntax: uid.UID) -> bool:
    """Whether voxels that are stored in this transfer syntax can be decoded."""
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


for _syntax in DECODER_DEPENDENCIES:
    get_decoder(_syntax).add_plugin("imagecodecs", (__name__, "decode_frame"))
