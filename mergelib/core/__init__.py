"""What every room stands on: errors, tensors and rows by name, paths, the store, downloads."""
