"""Files that hold images exactly, as small as the model's bound says."""
