"""All that the package knows about Hugging Face models."""
