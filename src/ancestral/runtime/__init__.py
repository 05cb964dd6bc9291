"""What any command needs beside diffusion: processes, signals, whole files, resumable jobs, screen, plots."""
