"""Training: runs and their lines, exact resume, guards, stages. Knows no framework."""
