"""Files and progress bars."""
