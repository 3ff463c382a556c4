"""The files of uploaded voices: their form, and the places where they are kept."""
