"""What users and third-party stores test with."""
