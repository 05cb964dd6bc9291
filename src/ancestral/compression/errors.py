"""What can be wrong with a compressed file."""

from ancestral.errors import UserError


class CodecError(UserError):
    """What cannot be coded, or a file that cannot be read: damaged, of another model, of another version."""
