"""Errors that speak to the person at the keyboard."""


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file, field or value, and the remedy.

    The command prints it and exits with code 2.
    """


class OtherVersion(UserError):
    """What a newer version of the package wrote; nothing is damaged."""


def missing(what: str, package: str, extra: str) -> UserError:
    """That something needs a package which is not installed, and how to install it."""
    return UserError(f'{what}: needs {package}; pip install "ancestral[{extra}]"')
