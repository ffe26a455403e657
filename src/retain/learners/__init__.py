"""Ways of learning a document."""
