"""The only door to array libraries: namespaces, values at a step, and the checks that arguments pass."""
