"""Errors that speak to the person at the keyboard."""


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file, field or value, and the remedy.

    The command prints it and exits with code 2.
    """


class OtherVersion(UserError):
    """What a newer version of the package wrote; nothing is damaged."""


def missing(what: str, package: str, extra: str) -> UserError:
    """That something needs a package which is not installed, and how to install it."""
    packages = " ".join(f'"{one}"' for one in _packages(extra))
    return UserError(f"{what}: needs {package}; pip install {packages}")


def _packages(extra: str) -> list[str]:
    """What an extra of this package installs, by name: an index may know no package of ours, or another's."""
    from importlib.metadata import requires

    found, own = [], "ancestral["
    for line in requires("ancestral") or ():
        package, _, condition = line.partition("; ")
        if condition != f'extra == "{extra}"':
            continue
        extras = package.removeprefix(own).removesuffix("]").split(",") if package.startswith(own) else []
        found += [each for one in extras for each in _packages(one)] or [package]
    return found
