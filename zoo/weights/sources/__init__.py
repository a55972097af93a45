"""One file a library: its tensor names, its configuration read and written."""
