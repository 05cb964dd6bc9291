"""Forward processes: schedules, Gaussian and absorbing noise, random streams."""
