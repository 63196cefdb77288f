"""The networks: Flax NNX modules used as plain pytrees. Arrays in, arrays out."""
