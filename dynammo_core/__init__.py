"""Class-incremental learning with merged adapters: the method, in PyTorch, without a word of Flower."""

__version__ = "0.1.0"
