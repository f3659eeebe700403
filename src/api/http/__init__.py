"""HTTP: parameters and bodies, answers and problems, and what happens to every request."""
