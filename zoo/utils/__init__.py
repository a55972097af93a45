"""What every room uses: the environment, files, reports. Imports nothing else of the zoo."""
