"""Names that a library doesn't promise to keep: a file a library, each name with the versions it was seen in."""
