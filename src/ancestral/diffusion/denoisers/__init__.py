"""What predicts x0: networks in their parametrisations, exact denoisers, guidance, energies, compositions."""
