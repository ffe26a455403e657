"""The service: answers over HTTP while what arrives is learned."""
