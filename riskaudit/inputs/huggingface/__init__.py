"""Models of the Hugging Face libraries: folders, tokens, and sequences of embedded tokens as the audited input."""
