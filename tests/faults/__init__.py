"""What a user's machine does to a run: kills, hostile disks, too little memory. ``tests/README.md``
lists every fault."""
