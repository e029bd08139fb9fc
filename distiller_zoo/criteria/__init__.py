"""The loss of each method and the layers trained with it, a file for each method; needs only torch."""
