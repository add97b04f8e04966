"""What an artifact is made of and what was made from it, across runs and recipes, from the files on disk alone.

    papers.py    reads what stages left behind, and trusts none of it
    register.py  every stage and artifact of the runs folders, by place, by content and by fingerprint
    graph.py     who read what from whom: nodes and edges, walked up and down
    wanted.py    what the words of a command line mean in that graph
    lines.py     a tree for the terminal
    picture.py   the same as an SVG, drawn as the report draws its own
    command.py   `orch lineage`

What was read is known by its content (the digest that the reader noted), not by its place: an artifact that was moved
or archived is found again, and one that was overwritten is not mistaken for what lies there now.
"""
