"""What the likelihoods share: the network's calls on noised data, and the bound's terms."""
