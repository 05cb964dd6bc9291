"""Everything that the package does on a device, on one that is not there (see `device`)."""
