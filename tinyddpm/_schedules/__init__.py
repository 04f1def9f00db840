"""The schedules that are defined by alpha_bar, and the checks that all schedules share."""
