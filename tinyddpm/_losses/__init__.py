"""What the losses share: one call of the network on noised data, the bound's terms, and samplers of t."""
