"""What may be asked of this project's methods without PyTorch: their parameters, and what these do not go with."""
