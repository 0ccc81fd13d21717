"""What leaves the framework: frozen models as files of other tools, and the proof that all of them agree."""
