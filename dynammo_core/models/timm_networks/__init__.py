"""Networks of timm and of the Hugging Face hub as backbones: their names, their weights, and where they can be cut."""
