"""How a run of sampling works: the methods as rows of weights, the loop, and one step."""
