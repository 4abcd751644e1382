"""The command line, headless notebooks, jobs for an external engine, the book, and publishing."""
