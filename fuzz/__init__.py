"""Coverage-guided fuzzing of everything that reads untrusted files: see README.md."""
