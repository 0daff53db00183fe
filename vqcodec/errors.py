"""Every error that vqcodec raises on purpose.

The library raises these, only the command line prints them (one line, exit 1). Each message says what is wrong
and what to do next.
"""


class VQCodecError(Exception):
    """The root: catch this to catch everything that vqcodec raises on purpose."""


class ImageError(VQCodecError):
    """The input is no image that can be read, or has a shape or type that the codec does not take."""


class LimitError(VQCodecError):
    """The input asks for more than the limits allow: pixels, bytes of metadata or of a file."""


class OutputError(VQCodecError):
    """The output cannot be written, or exists and was not to be overwritten."""


class TargetError(VQCodecError):
    """No quality of the model reaches the size or the distortion that was asked for."""


class FormatError(VQCodecError):
    """The data is not a well-formed `.vq` file."""


class BadMagicError(FormatError):
    """The data does not begin with the magic of a `.vq` file."""


class UnsupportedVersionError(FormatError):
    """The file has a format version that this release does not know."""


class TruncatedError(FormatError):
    """The file ends before its sections do."""


class DamagedError(FormatError):
    """A checksum or a length in the file does not hold."""


class SettingError(VQCodecError):
    """An environment variable says what it cannot mean."""


class ModelError(VQCodecError):
    """The root of errors about models."""


class ModelNotFoundError(ModelError):
    """No model has that name or lies at that path."""


class InvalidModelError(ModelError):
    """A model folder is incomplete, malformed, or breaks the exactness bound."""


class WrongModelError(ModelError):
    """The file was made with another model than the one given."""


class TrainingError(VQCodecError):
    """Training cannot start or go on: no usable images, a checkpoint that does not fit or cannot be written, figures not finite."""


class BenchError(VQCodecError):
    """A bench cannot run as it was asked for."""


class MissingLibraryError(BenchError):
    """A peer's library is not installed; the bench goes on without that peer."""


def first_line(error: BaseException) -> str:
    """What another library's error says first, or its kind where it says nothing: ONNX Runtime raises such."""
    return next(iter(str(error).splitlines()), type(error).__name__)
