"""Pure functions: losses, noise, mel, mixing, resampling, metrics, distances, bootstrap. No files."""
