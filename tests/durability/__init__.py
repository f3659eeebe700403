"""What is on disk when it is said to be; what is said when a thing cannot be done."""
