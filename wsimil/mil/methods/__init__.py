"""One file, one method; the name of the file is the name of the method."""
