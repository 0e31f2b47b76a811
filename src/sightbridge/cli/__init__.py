"""The command line: ``main.py`` holds the table of verbs, every verb has a file of its own."""
