"""A file for each method: its loss and the layers trained with it; needs only torch."""
