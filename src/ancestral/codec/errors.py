"""What can be wrong with a compressed file."""

from ancestral.errors import UserError


class CodecError(UserError):
    """A compressed file that cannot be read here, in one line: damaged, of another model, or of another version."""
