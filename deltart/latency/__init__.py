"""How fast an artifact or a server is, and whether a change made it slower: measured in turns, judged by a rule."""
