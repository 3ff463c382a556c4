"""Long texts read aloud: scripts, casts, books on disk. docs/long_form.md shows it."""
