"""Attacks on finished runs: what someone could learn of the sites' images from the model or from a message."""
