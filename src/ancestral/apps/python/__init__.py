"""What `import ancestral` gives: models and runs for everyday work, over the same functions as the command line."""
