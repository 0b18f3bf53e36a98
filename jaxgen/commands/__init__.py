"""What one does with a run folder, a file each: `run(directory, args)` of what follows the command."""
