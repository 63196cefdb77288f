"""What stands in front of a document: search among vectors, the rules of choice, and the join."""
