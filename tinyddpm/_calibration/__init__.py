"""What stands behind `tinyddpm.calibration`: the measurement, the search for plans, and the file."""
