"""Terms of a loss that any method may have, one file each."""
