"""A file for each method: its loss and what is trained with it, with torch alone."""
