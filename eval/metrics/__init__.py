"""Records -> metrics and effects."""
