"""What finished runs say: read, compared with what was published, drawn, and reported."""
