"""Running it all: commands, notebooks headless, jobs for an engine outside, the book,
publishing."""
