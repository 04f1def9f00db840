"""How a network is called and its output read: checks of the output, networks that need the chain, the variance."""
