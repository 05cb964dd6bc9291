"""What the others' training code uses of torchvision, by the same names and with the same meaning; nothing more.

It stands in for the real package, which would bring a torch of its own. It is found only where a benchmark adds this
folder's parent to the path.
"""
