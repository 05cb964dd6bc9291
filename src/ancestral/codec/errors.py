"""What a codec refuses."""

from ancestral.errors import UserError


class CodecError(UserError):
    """A file, or numbers to be coded, that cannot be right."""
