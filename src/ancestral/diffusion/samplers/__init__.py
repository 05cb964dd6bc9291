"""Steps p(x_s | x_t), solvers, time grids, and the one loop that takes them."""
