"""What stands behind `tinyddpm.edit`: solving a DDIM step for its start, RePaint's walk, and paths between images."""
