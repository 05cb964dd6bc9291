"""Errors that speak to the person at the keyboard."""


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file, field or value, and the remedy.

    The command prints it and exits with code 2.
    """


class OtherVersion(UserError):
    """What a newer version of the package wrote; nothing is damaged."""
