"""Adapters inside transformers: where they can go, what they compute, and how they become part of the weights."""
