"""The OpenAPI document, made of the route table."""
