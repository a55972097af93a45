"""What every room uses: the environment, files, progress lines, reports. Imports nothing else of the zoo."""
