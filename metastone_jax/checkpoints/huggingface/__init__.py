"""Hugging Face folders, GGUF files and the released score head, in and out."""
