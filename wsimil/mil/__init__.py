"""Multiple instance learning: packed bags, the contract of a method, the methods and their registry."""
